"""A lock on a folder, so that two runs do not work in it at the same time."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from secateur.errors import StateError

if sys.platform != "win32":
    import fcntl

__all__ = ["LOCK", "FolderLock"]

LOCK = "run.lock"
"""The file that is locked; a process that is killed leaves it behind, unlocked."""


class FolderLock:
    """A lock that ends with the process at the latest. Windows and some network file systems have none.

    Args:
        folder: The folder.

    Raises:
        StateError: Another run has it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None
        if sys.platform == "win32":
            return
        while self._descriptor is None:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError:
                return  # whoever writes into the folder next says what is wrong with it
            self._descriptor = self._locked(descriptor, folder)

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _locked(self, descriptor: int, folder: Path) -> int | None:
        """The descriptor, locked; ``None``: its file was removed meanwhile by whoever had the lock."""
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                raise StateError(
                    f"Another run works in the folder {str(folder)!r}. Wait for its end, or choose another folder."
                ) from error
            except OSError:
                return descriptor  # there are no locks here
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    return descriptor
            os.close(descriptor)
        return None
