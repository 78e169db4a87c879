"""Lock folders while a process reads or replaces their files."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from secateur.errors import ArtifactError

if sys.platform != "win32":
    import fcntl

__all__ = ["lock_folder", "try_lock_file", "try_lock_folder"]

logger = logging.getLogger(__name__)

MAX_SECONDS = 60.0
"""Maximum time to wait for a lock that another process holds."""

SECONDS_BEFORE_WARNING = 2.0

SECONDS_BETWEEN_TRIES = 0.002
"""Short, so that a writer gets the lock between many readers."""

HELD_BY_ANOTHER = frozenset({errno.EACCES, errno.EAGAIN})


@contextmanager
def lock_folder(folder: Path, *, is_shared: bool = False) -> Iterator[None]:
    """Hold the lock of a folder.

    The operating system releases the locks of a process when it ends. On Windows and on some network file systems,
    which have no such locks, nothing is locked.

    Args:
        folder: The folder; if it does not exist, nothing is locked.
        is_shared: Whether other processes may hold a shared lock of the folder at the same time.

    Raises:
        ArtifactError: Another process holds the lock for more than `MAX_SECONDS`.
    """
    with _open_folder(folder) as descriptor:
        if descriptor is not None:
            _wait_for_lock(descriptor, folder, is_shared=is_shared)
        yield


@contextmanager
def try_lock_folder(folder: Path) -> Iterator[bool | None]:
    """Try to lock a folder without waiting; yield whether it is locked, or ``None`` if locks are not supported."""
    with _open_folder(folder) as descriptor:
        yield None if descriptor is None else _try_lock(descriptor, is_shared=False)


@contextmanager
def try_lock_file(file: Path) -> Iterator[bool | None]:
    """Try to lock a file without waiting; yield whether it is locked, or ``None`` if locks are not supported."""
    with _open(file, os.O_RDONLY) as descriptor:
        yield None if descriptor is None else _try_lock(descriptor, is_shared=False)


def _open_folder(folder: Path) -> AbstractContextManager[int | None]:
    """Return a context with a file descriptor of the folder, or ``None`` if folders cannot be locked."""
    return _open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))


@contextmanager
def _open(path: Path, flags: int) -> Iterator[int | None]:
    """Yield a file descriptor, or ``None`` if the path cannot be opened or locked."""
    descriptor = None
    try:
        if sys.platform != "win32":
            with suppress(OSError):
                descriptor = os.open(path, flags)
        yield descriptor
    finally:
        if descriptor is not None:
            _close(descriptor)


def _wait_for_lock(descriptor: int, folder: Path, *, is_shared: bool) -> None:
    start, has_warned = time.monotonic(), False
    while _try_lock(descriptor, is_shared=is_shared) is False:
        waited = time.monotonic() - start
        if waited > MAX_SECONDS:
            raise ArtifactError(
                f"{folder}: another process has held the lock of this folder for more than {MAX_SECONDS:.0f} s. Wait "
                f"until it ends, or stop it."
            )
        if waited > SECONDS_BEFORE_WARNING and not has_warned:
            has_warned = True
            logger.warning("Waiting up to %.0f s for another process that holds the lock of %s", MAX_SECONDS, folder)
        time.sleep(SECONDS_BETWEEN_TRIES)


def _try_lock(descriptor: int, *, is_shared: bool) -> bool | None:
    """Try to lock once; return whether that succeeded, or ``None`` if the file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD_BY_ANOTHER else None
    return True


def _close(descriptor: int) -> None:
    try:
        if sys.platform != "win32":
            # Closing alone keeps the lock if a process was forked meanwhile.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
