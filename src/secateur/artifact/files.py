"""Files that anybody may have made: opened only if they are files, and read only as far as they go."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from secateur.errors import ArtifactError

__all__ = ["opened", "read_into", "sized_digest", "small_file"]

CHUNK = 1 << 20


def opened(path: Path) -> BinaryIO:
    """A file, open to be read; a pipe or a device, which may never end, is refused unread.

    Raises:
        ArtifactError: It is no file, or cannot be read.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            file: BinaryIO = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller's
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file
            file.close()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}).") from error
    raise ArtifactError(f"{path}: must be a file, found {'a folder' if path.is_dir() else 'a pipe or a device'}.")


def small_file(path: Path, most: int) -> bytes:
    """What a file holds.

    Raises:
        ArtifactError: It has more bytes than `most`, or cannot be read.
    """
    with opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            text = file.read(size) if size <= most else b""
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error}).") from error
    if size > most:
        raise ArtifactError(f"{path}: must have {most:,} bytes at the most, found {size:,}.")
    return text


def sized_digest(path: Path) -> tuple[int, str]:
    """A file's bytes, and their SHA-256.

    Raises:
        ArtifactError: It cannot be read.
    """
    size, found = 0, hashlib.sha256()
    with opened(path) as file:
        try:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                found.update(chunk)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error}).") from error
    return size, found.hexdigest()


def read_into(file: BinaryIO, buffer: memoryview, start: int) -> int:
    """Fill a buffer from a place in a file; how many bytes there were.

    The file's own position stays, so that threads and forked processes may share the file.
    """
    done, count = 0, -1
    while done < len(buffer) and count:
        count = _read_at(file, buffer[done:], start + done)
        done += count
    return done


def _read_at(file: BinaryIO, buffer: memoryview, start: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [buffer], start)
    file.seek(start)
    return file.readinto(buffer)  # type: ignore[attr-defined,no-any-return]


def _without_waiting(path: Any, flags: int) -> int:
    """Open even what became a pipe in the meantime, without waiting for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
