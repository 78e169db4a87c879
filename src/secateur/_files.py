"""Files that anybody may have made, opened only if they are regular files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["NotRegularFileError", "open_regular_file"]


class NotRegularFileError(OSError):
    """A folder, a pipe or a device in place of a file; for modules that raise an error of their own."""


def open_regular_file(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting for the other end of a pipe, and without touching a device.

    Raises:
        NotRegularFileError: It is no regular file.
        OSError: It cannot be opened.
        ValueError: No file can have that name.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise NotRegularFileError(f"must be a file, found {'a folder' if path.is_dir() else 'a pipe or a device'}")
    file: BinaryIO = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller's
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it may have been replaced in the meantime
        return file
    file.close()
    raise NotRegularFileError("must be a file, found a pipe or a device")


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
