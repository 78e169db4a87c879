"""Copy companion files, such as the configuration and the tokenizer, with the weights of a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from secateur._files import MAX_OPEN_FILES, FileDigest, FileReader
from secateur._folders import lock_for_reading
from secateur._huggingface.folders import INDEX_SUFFIX
from secateur._manifest_file import MANIFEST, is_artifact, read_listed_files
from secateur.errors import ArtifactError

__all__ = ["CODE_SUFFIXES", "COMPANION_SUFFIXES", "Companion", "CompanionFiles", "check_size"]

COMPANION_SUFFIXES = frozenset({".codes", ".jinja", ".json", ".model", ".spm", ".tiktoken", ".txt"})
"""Suffixes of configuration and tokenizer files."""

CODE_SUFFIXES = frozenset({".py"})
"""Suffixes of code files in a model folder."""

MAX_COMPANION_BYTES = 1_000_000_000

CACHE_PREFIX = "models--"
"""Prefix of model folders in the Hugging Face cache, where files in ``snapshots/REVISION`` link to ``blobs``."""


class Companion:
    """A companion file, kept open so that later reads see the same file.

    Args:
        path: The file. If it cannot be opened, reading it raises an error.
        digest: Size and SHA-256 in the manifest; ``None``: the file is not listed in a manifest.
        keep_open: Whether to keep the file open.
    """

    def __init__(self, path: Path, digest: FileDigest | None = None, *, keep_open: bool = True) -> None:
        self.path, self.digest = path, digest
        self._file: FileReader | None = None
        with suppress(ArtifactError):
            self._file = FileReader(path, keep_open=keep_open)

    def read(self, write: Callable[[bytes], object] = lambda chunk: None) -> None:  # noqa: ARG005
        """Pass the content in chunks to `write`, and check that it matches the manifest.

        Raises:
            ArtifactError: The file cannot be read or has changed; discard what was passed to `write`.
        """
        file = self._file or FileReader(self.path)
        if self.digest is not None and file.size != self.digest.size:
            raise self._make_change_error()
        check_size(self.path, file.size)
        digest = hashlib.sha256()
        for chunk in file.iterate_chunks():
            digest.update(chunk)
            write(chunk)
        if self.digest is None:
            file.check_unchanged()
        elif digest.hexdigest() != self.digest.sha256:
            raise self._make_change_error()

    def read_bytes(self, max_bytes: int) -> bytes:
        """Read and check the whole content.

        Raises:
            ArtifactError: See `read`; or the file is larger than `max_bytes`.
        """
        if self.digest is not None and self.digest.size > max_bytes:
            raise ArtifactError(f"{self.path}: must have at most {max_bytes:,} bytes, found {self.digest.size:,}.")
        chunks: list[bytes] = []
        self.read(chunks.append)
        return b"".join(chunks)

    def copy(self, target: Path) -> None:
        """Copy and check the file; the target is written completely or not at all.

        Raises:
            ArtifactError: See `read`; or the copy cannot be written.
        """
        unfinished = target.with_name(f"{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as copy:
                self.read(copy.write)
            os.replace(unfinished, target)
        except OSError as error:
            raise ArtifactError(f"{target}: cannot be written ({error}).") from error

    def _make_change_error(self) -> ArtifactError:
        return ArtifactError(f"{self.path}: has changed since it was written.")


class CompanionFiles:
    """The files of a folder that are copied with its weights; they are opened immediately and stay open.

    These are the visible files with one of `suffixes`, except indexes of shards. Links are followed if they lead to a
    file in the same folder, or within the same model in the Hugging Face cache, so that an untrusted folder cannot
    cause other files of the user to be copied. In an artifact, only files that the manifest lists are copied.

    Args:
        folder: The folder.
        suffixes: Suffixes of file names.
        excluded: File names to leave out.

    Raises:
        ArtifactError: A file is a link to another place, is not a regular file, or cannot be read.
    """

    def __init__(
        self, folder: Path, suffixes: Collection[str] = COMPANION_SUFFIXES, excluded: Collection[str] = ()
    ) -> None:
        with lock_for_reading(folder):
            digests: dict[str, FileDigest | None] = (
                dict(read_listed_files(folder)) if is_artifact(folder) else dict.fromkeys(_list_files(folder))
            )
            names = [name for name in digests if _is_companion(name, suffixes) and name not in excluded]
            keep_open = len(names) <= MAX_OPEN_FILES
            self.files = {name: _open_companion(folder, name, digests[name], keep_open=keep_open) for name in names}

    def copy(self, target: Path) -> None:
        """Copy the files into a folder, except those that already exist there.

        Raises:
            ArtifactError: A file has changed or cannot be read, or a copy cannot be written.
        """
        for name, file in self.files.items():
            if not os.path.lexists(target / name):
                file.copy(target / name)


def check_size(path: Path, size: int) -> None:
    """Raise `ArtifactError` if a companion file is too large."""
    if size > MAX_COMPANION_BYTES:
        raise ArtifactError(
            f"{path}: a companion file must have at most {MAX_COMPANION_BYTES:,} bytes, found {size:,}."
        )


def _list_files(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if not os.path.isdir(path))
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be read ({error}).") from error


def _is_companion(name: str, suffixes: Collection[str]) -> bool:
    path = Path(name)
    is_excluded = name == MANIFEST or name.endswith(INDEX_SUFFIX) or name.startswith(".")
    return len(path.parts) == 1 and path.suffix in suffixes and not is_excluded


def _open_companion(folder: Path, name: str, digest: FileDigest | None, *, keep_open: bool) -> Companion:
    if digest is not None:
        return Companion(folder / name, digest, keep_open=keep_open)
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(root / name))
    if not any(target.is_relative_to(allowed) for allowed in (root, *_find_cache_folders(root))):
        raise ArtifactError(
            f"{folder / name}: is a link to {str(target)!r}, outside the folder, and is not copied. Replace the link "
            f"by the file, or remove it."
        )
    check_size(folder / name, FileReader(target, keep_open=False).size)
    return Companion(target, keep_open=keep_open)


def _find_cache_folders(folder: Path) -> list[Path]:
    """Find the folder of the model in the Hugging Face cache, if `folder` is one of its snapshots."""
    return [
        parent.parent
        for parent in folder.parents
        if parent.name == "snapshots" and parent.parent.name.startswith(CACHE_PREFIX)
    ]
