"""Copy companion files, such as the configuration and the tokenizer, with the weights of a model."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from secateur._files import MAX_OPEN_FILES, FileDigest, FileReader
from secateur._folders import lock_for_reading
from secateur._huggingface.companion_list import list_companions
from secateur._huggingface.folders import is_weight_index
from secateur._manifest_file import is_artifact, is_file_name, read_listed_files
from secateur._wording import format_list, format_value
from secateur.errors import ArtifactError

__all__ = ["Companion", "CompanionFiles", "check_name", "check_size"]

logger = logging.getLogger(__name__)

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

    See `list_companions` for what is copied. Links are followed if they lead to a file in the same folder, or within
    the same model in the Hugging Face cache, so that an untrusted folder cannot cause other files of the user to be
    copied. In an artifact, only files that the manifest lists are copied.

    Args:
        folder: The folder.

    Attributes:
        files: Path within the folder → file.
        left_out: Files and subfolders with weights that are not copied.

    Raises:
        ArtifactError: A file is a link to another place, is not a regular file, cannot be read, or has a name that a
            manifest cannot list.
    """

    def __init__(self, folder: Path) -> None:
        with lock_for_reading(folder):
            digests: dict[str, FileDigest | None] = {}
            self.left_out: list[str] = []
            if is_artifact(folder):
                digests |= {
                    name: digest for name, digest in read_listed_files(folder).items() if not is_weight_index(name)
                }
            else:
                names, self.left_out = list_companions(folder)
                digests |= dict.fromkeys(names)
            keep_open = len(digests) <= MAX_OPEN_FILES
            self.files = {
                name: _open_companion(folder, name, digest, keep_open=keep_open) for name, digest in digests.items()
            }

    def copy(self, target: Path) -> None:
        """Copy the files into a folder, except those that already exist there.

        Raises:
            ArtifactError: A file has changed or cannot be read, or a copy cannot be written.
        """
        if self.left_out:
            logger.warning(
                "Not copied: weights of another model or in another format, which are not pruned: %s.",
                format_list(map(format_value, self.left_out)),
            )
        for name, file in self.files.items():
            if not os.path.lexists(target / name):
                file.copy(target / name)


def check_name(name: str) -> None:
    """Raise `ArtifactError` if a manifest cannot list a file of this name."""
    if not is_file_name(name):
        raise ArtifactError(
            f"file {format_value(name)}: the names of files in an artifact must be printable, in Unicode form NFKC, "
            'without any of \\ : * ? " < > | ~ $ % `, and not end with a dot or a space. Rename the file.'
        )


def check_size(path: Path, size: int) -> None:
    """Raise `ArtifactError` if a companion file is too large."""
    if size > MAX_COMPANION_BYTES:
        raise ArtifactError(
            f"{path}: a companion file must have at most {MAX_COMPANION_BYTES:,} bytes, found {size:,}. Move it "
            f"to another folder."
        )


def _open_companion(folder: Path, name: str, digest: FileDigest | None, *, keep_open: bool) -> Companion:
    check_name(name)
    if digest is not None:
        return Companion(folder / name, digest, keep_open=keep_open)
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(root / name))
    if not any(target.is_relative_to(allowed) for allowed in (root, *_find_cache_folders(root))):
        raise ArtifactError(
            f"{folder / name}: is a link to {str(target)!r}, outside the folder, and is not copied. Replace the link "
            "with the file, or remove it."
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
