"""Files that anybody may have made: opened only if they are regular files, and read only as far as they go."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO
from weakref import finalize

from secateur._files import NotRegularFileError, open_regular_file
from secateur._wording import format_value
from secateur.errors import ArtifactError

__all__ = ["MAX_HELD", "FileReader", "as_path", "open_file", "read_small_file", "sized_digest"]

CHUNK = 1 << 20

MAX_HELD = 200
"""Files of one folder that are all kept open; of more, each is opened when it is read."""


def as_path(path: str | Path) -> Path:
    """A path that the operating system can be asked for.

    Raises:
        ArtifactError: No file can have that name.
    """
    try:
        encoded = os.fsencode(path)
    except ValueError as error:
        raise ArtifactError(f"path {format_value(str(path))} cannot be the name of a file ({error}).") from error
    if b"\0" in encoded:
        raise ArtifactError(f"path {format_value(str(path))} cannot be the name of a file (it has a null character).")
    return Path(path)


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which may never end, is refused unread.

    Raises:
        ArtifactError: It is no regular file, or cannot be read.
    """
    try:
        return open_regular_file(path)
    except NotRegularFileError as error:
        raise ArtifactError(f"{path}: {error}.") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


class FileReader:
    """A file, of which all is read from the same file even if another takes its name.

    Args:
        path: The file.
        is_held: Whether it stays open. If not, it is opened whenever it is read, and must be the same then.

    Attributes:
        path: The same.
        size: Its bytes when it was opened.

    Raises:
        ArtifactError: It is no regular file, or cannot be read.
    """

    def __init__(self, path: Path, *, is_held: bool = True) -> None:
        self.path = path
        file = open_file(path)
        self._held = file if is_held else None
        if is_held:
            finalize(self, file.close)
        with nullcontext() if is_held else file:
            self._state = _state(path, file)
        self.size = self._state[2]

    def read(self, max_bytes: int) -> bytes:
        """The whole content.

        Raises:
            ArtifactError: There are more bytes than `max_bytes`, or the file cannot be read.
        """
        if self.size > max_bytes:
            raise ArtifactError(f"{self.path}: must have {max_bytes:,} bytes at the most, found {self.size:,}.")
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The content, part by part.

        Raises:
            ArtifactError: It cannot be read.
        """
        with self._opened() as file:
            for start in range(0, self.size, CHUNK):
                buffer = bytearray(min(CHUNK, self.size - start))
                count = self._fill(file, memoryview(buffer), start)
                yield bytes(buffer[:count])

    def read_into(self, buffer: memoryview, start: int) -> int:
        """Fill a buffer from a place in the file; returns how many bytes there were.

        The file's own position stays, so that threads and forked processes may share the file.

        Raises:
            ArtifactError: It cannot be read.
        """
        with self._opened() as file:
            return self._fill(file, buffer, start)

    def check_unchanged(self) -> None:
        """Raise `ArtifactError` if the file was written to since it was opened."""
        with self._opened() as file:
            if _state(self.path, file) != self._state:
                raise self._changed()

    def check_in_place(self) -> None:
        """Raise `ArtifactError` if its name is not that of the same file any more."""
        with open_file(self.path) as file:
            if _state(self.path, file) != self._state:
                raise self._changed()

    def _fill(self, file: BinaryIO, buffer: memoryview, start: int) -> int:
        done, count = 0, -1
        try:
            while done < len(buffer) and count:
                count = _read_at(file, buffer[done:], start + done)
                done += count
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from error
        return done

    def _opened(self) -> AbstractContextManager[BinaryIO]:
        if self._held is not None:
            return nullcontext(self._held)
        file = open_file(self.path)
        if _state(self.path, file) != self._state:
            file.close()
            raise self._changed()
        return file

    def _changed(self) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: was changed or replaced by another process while it was being read. Read it again when "
            f"nobody writes there."
        )


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """What a file holds.

    Raises:
        ArtifactError: It has more bytes than `max_bytes`, or cannot be read.
    """
    return FileReader(path).read(max_bytes)


def sized_digest(path: Path) -> tuple[int, str]:
    """A file's bytes, and their SHA-256.

    Raises:
        ArtifactError: It cannot be read.
    """
    size, digest = 0, hashlib.sha256()
    for chunk in FileReader(path).chunks():
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()


def _state(path: Path, file: BinaryIO) -> tuple[int, int, int, int]:
    """What changes when a file is written to or replaced."""
    try:
        found = os.fstat(file.fileno())
    except OSError as error:
        raise _unreadable(path, error) from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path}: cannot be read ({error}).")


def _read_at(file: BinaryIO, buffer: memoryview, start: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [buffer], start)
    file.seek(start)
    return file.readinto(buffer)  # type: ignore[attr-defined,no-any-return]
