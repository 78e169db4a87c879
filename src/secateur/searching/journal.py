"""The file in which a search is stored: a journal that survives when the process is killed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from secateur._locks import try_lock_file
from secateur._wording import format_count
from secateur.errors import StateError, StorageError

__all__ = ["open_journal"]

logger = logging.getLogger(__name__)

START = b'{"op_code":'
"""The first bytes of every journal that Optuna writes."""


class _OpenLock:
    """The lock that Optuna takes for every record; the whole search holds a better one."""

    def acquire(self) -> bool:
        """Do nothing."""
        return True

    def release(self) -> None:
        """Do nothing."""


@contextmanager
def open_journal(path: Path) -> Iterator[Any]:
    """Open a journal as a storage for Optuna, and lock it.

    A process that is killed while it writes leaves half a record, which Optuna would refuse to read; it is removed.
    The operating system releases the lock of a process that ends, so an interrupted search can resume at once.

    Args:
        path: The file, which is created if it does not exist.

    Raises:
        StateError: The file is not a journal, or another process is searching with it.
        StorageError: The file cannot be written.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise StorageError(
            f"storage {str(path)!r} cannot be written: {error.strerror}. Choose another file."
        ) from error
    with try_lock_file(path) as is_locked:
        if is_locked is False:
            raise StateError(
                f"storage {str(path)!r} belongs to a search that another process is running. Wait until it ends, or "
                f"choose another file."
            )
        _remove_torn_record(path)
        try:
            storage = JournalStorage(JournalFileBackend(str(path), lock_obj=cast("Any", _OpenLock())))
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise _make_damage_error(path, error) from error
        yield storage


def _remove_torn_record(path: Path) -> None:
    """Remove what a killed process has not finished writing: everything after the last line break."""
    content = path.read_bytes()
    if not (content.startswith(START) or START.startswith(content)):
        raise _make_damage_error(path, "it starts with other data")
    if torn := len(content) - (content.rfind(b"\n") + 1):
        os.truncate(path, len(content) - torn)
        logger.warning("Removed an unfinished record of %s from the end of %s.", format_count(torn, "byte"), path)


def _make_damage_error(path: Path, reason: object) -> StateError:
    return StateError(
        f"storage {str(path)!r} must be a new file or the journal of a search, and it is neither: {reason}. Choose "
        f"another file."
    )
