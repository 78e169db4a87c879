"""Read files from untrusted sources: only regular files, which must not change while they are read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from weakref import finalize

from secateur._wording import format_value
from secateur.errors import ArtifactError

__all__ = [
    "MAX_OPEN_FILES",
    "FileDigest",
    "FileReader",
    "NotRegularFileError",
    "as_path",
    "digest_file",
    "open_file",
    "open_regular_file",
    "read_small_file",
]

CHUNK_BYTES = 1 << 20

MAX_OPEN_FILES = 200
"""Maximum files of one folder to keep open; with more, each file is opened when it is read."""


class NotRegularFileError(OSError):
    """A folder, a pipe or a device was found instead of a file."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Identifies the content of a file.

    Attributes:
        size: Its size in bytes.
        sha256: SHA-256 of the content, in hexadecimal.
    """

    size: int
    sha256: str


def as_path(path: str | Path) -> Path:
    """Convert a string to a path that the operating system accepts.

    Raises:
        ArtifactError: The name is invalid.
    """
    try:
        encoded = os.fsencode(path)
    except ValueError as error:
        raise ArtifactError(f"path {format_value(str(path))} is not a valid file name ({error}).") from error
    if b"\0" in encoded:
        raise ArtifactError(f"path {format_value(str(path))} is not a valid file name (it contains a null character).")
    return Path(path)


def open_regular_file(path: Path) -> BinaryIO:
    """Open a file for reading, without blocking on a pipe and without touching a device.

    Raises:
        NotRegularFileError: The path is not a regular file.
        OSError: The file cannot be opened.
        ValueError: The name is invalid.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise NotRegularFileError(f"must be a file, found {'a folder' if path.is_dir() else 'a pipe or a device'}")
    file: BinaryIO = open(path, "rb", opener=_open_without_blocking)  # noqa: SIM115 - the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it may have been replaced since the check
        return file
    file.close()
    raise NotRegularFileError("must be a file, found a pipe or a device")


def open_file(path: Path) -> BinaryIO:
    """Open a file like `open_regular_file`, but raise `ArtifactError`.

    Raises:
        ArtifactError: The path is not a regular file, or the file cannot be read.
    """
    try:
        return open_regular_file(path)
    except NotRegularFileError as error:
        raise ArtifactError(f"{path}: {error}.") from error
    except (OSError, ValueError) as error:
        raise _make_read_error(path, error) from error


class FileReader:
    """Reads a file, and refuses another file that has replaced it.

    Args:
        path: The file.
        keep_open: Whether the file stays open. If not, it is opened for every read and must be the same file.

    Attributes:
        path: The file.
        size: Its size in bytes when it was first opened.

    Raises:
        ArtifactError: The path is not a regular file, or the file cannot be read.
    """

    def __init__(self, path: Path, *, keep_open: bool = True) -> None:
        self.path = path
        file = open_file(path)
        self._file = file if keep_open else None
        if keep_open:
            finalize(self, file.close)
        with nullcontext() if keep_open else file:
            self._identity = _get_identity(path, file)
        self.size = self._identity[2]

    def read(self, max_bytes: int) -> bytes:
        """Read the whole file.

        Raises:
            ArtifactError: The file is larger than `max_bytes`, or cannot be read.
        """
        if self.size > max_bytes:
            raise ArtifactError(f"{self.path}: must have at most {max_bytes:,} bytes, found {self.size:,}.")
        return b"".join(self.iterate_chunks())

    def iterate_chunks(self) -> Iterator[bytes]:
        """Read the file in chunks.

        Raises:
            ArtifactError: The file cannot be read.
        """
        with self._open() as file:
            for start in range(0, self.size, CHUNK_BYTES):
                buffer = bytearray(min(CHUNK_BYTES, self.size - start))
                count = self._fill(file, memoryview(buffer), start)
                yield bytes(buffer[:count])

    def read_into(self, buffer: memoryview, start: int) -> int:
        """Fill a buffer from an offset of the file, and return the number of bytes read.

        The position of the file does not change, so threads and forked processes may share it.

        Raises:
            ArtifactError: The file cannot be read.
        """
        with self._open() as file:
            return self._fill(file, buffer, start)

    def check_unchanged(self) -> None:
        """Raise `ArtifactError` if the file has been written to since it was opened."""
        with self._open() as file:
            if _get_identity(self.path, file) != self._identity:
                raise self._make_change_error()

    def check_in_place(self) -> None:
        """Raise `ArtifactError` if the path now names another file."""
        with open_file(self.path) as file:
            if _get_identity(self.path, file) != self._identity:
                raise self._make_change_error()

    def _fill(self, file: BinaryIO, buffer: memoryview, start: int) -> int:
        done, count = 0, -1
        try:
            while done < len(buffer) and count:
                count = _read_at(file, buffer[done:], start + done)
                done += count
        except (OSError, ValueError) as error:
            raise _make_read_error(self.path, error) from error
        return done

    def _open(self) -> AbstractContextManager[BinaryIO]:
        if self._file is not None:
            return nullcontext(self._file)
        file = open_file(self.path)
        if _get_identity(self.path, file) != self._identity:
            file.close()
            raise self._make_change_error()
        return file

    def _make_change_error(self) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: was changed or replaced by another process while it was being read. Try again when no "
            f"other process writes to it."
        )


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Read a whole file.

    Raises:
        ArtifactError: The file is larger than `max_bytes`, or cannot be read.
    """
    return FileReader(path).read(max_bytes)


def digest_file(path: Path) -> FileDigest:
    """Compute the size and the SHA-256 of a file.

    Raises:
        ArtifactError: The file cannot be read.
    """
    size, digest = 0, hashlib.sha256()
    for chunk in FileReader(path).iterate_chunks():
        size += len(chunk)
        digest.update(chunk)
    return FileDigest(size, digest.hexdigest())


def _open_without_blocking(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _get_identity(path: Path, file: BinaryIO) -> tuple[int, int, int, int]:
    """Return values that change when a file is written to or replaced."""
    try:
        status = os.fstat(file.fileno())
    except OSError as error:
        raise _make_read_error(path, error) from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _make_read_error(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path}: cannot be read ({error}).")


def _read_at(file: BinaryIO, buffer: memoryview, start: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [buffer], start)
    file.seek(start)
    return file.readinto(buffer)  # type: ignore[attr-defined,no-any-return]
