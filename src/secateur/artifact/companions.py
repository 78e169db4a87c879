"""Files beside the weights: configuration, tokenizer and the like, and which of them are copied with a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from secateur.artifact.files import MAX_HELD, FileReader
from secateur.artifact.folder import read_lock
from secateur.artifact.manifest import MANIFEST, FileEntry, Manifest
from secateur.errors import ArtifactError

__all__ = ["CODE", "COPIED", "INDEX_SUFFIX", "Companion", "CompanionFiles", "check_size"]

COPIED = frozenset({".codes", ".jinja", ".json", ".model", ".spm", ".tiktoken", ".txt"})
"""Suffixes of files that make a model usable: configuration and tokenizer."""

CODE = frozenset({".py"})
"""Suffixes of a model's own code."""

MAX_COMPANION_BYTES = 1_000_000_000

INDEX_SUFFIX = ".index.json"
"""Of a file that says which weights are in which file, which is not true of a copy."""

CACHE_PREFIX = "models--"
"""Of a model's folder in the cache of Hugging Face's hub, where ``snapshots/REVISION`` links to files in ``blobs``."""


class Companion:
    """A file beside weights, kept open so that what is read later is of the same file.

    Args:
        path: The file; if it cannot be opened, reading it raises.
        entry: What a manifest says of it; ``None``: nothing does.
        is_held: Whether it is kept open.
    """

    def __init__(self, path: Path, entry: FileEntry | None = None, *, is_held: bool = True) -> None:
        self.path, self.entry = path, entry
        self._file: FileReader | None = None
        with suppress(ArtifactError):
            self._file = FileReader(path, is_held=is_held)

    def read(self, write: Callable[[bytes], object] = lambda chunk: None) -> None:  # noqa: ARG005
        """Read the file, give every part of it to `write`, and prove that it is what it was when it was written.

        Raises:
            ArtifactError: It cannot be read, or was changed; what `write` was given must not be used then.
        """
        file = self._file or FileReader(self.path)
        if self.entry is not None and file.size != self.entry.size:
            raise self._changed()
        check_size(self.path, file.size)
        digest = hashlib.sha256()
        for chunk in file.chunks():
            digest.update(chunk)
            write(chunk)
        if self.entry is None:
            file.check_unchanged()
        elif digest.hexdigest() != self.entry.sha256:
            raise self._changed()

    def text(self, max_bytes: int) -> bytes:
        """Its content, proved.

        Raises:
            ArtifactError: See `read`; or it has more bytes than `max_bytes`.
        """
        if self.entry is not None and self.entry.size > max_bytes:
            raise ArtifactError(f"{self.path}: must have {max_bytes:,} bytes at the most, found {self.entry.size:,}.")
        parts: list[bytes] = []
        self.read(parts.append)
        return b"".join(parts)

    def copy(self, target: Path) -> None:
        """Write its content to a file, proved; the file is there as a whole or not at all.

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

    def _changed(self) -> ArtifactError:
        return ArtifactError(f"{self.path}: was changed since it was written.")


class CompanionFiles:
    """The files of a folder that are copied with its weights, kept open from now on.

    These are the visible files with one of `suffixes`, but for indices of weights. A link counts as a file if it leads
    to one in the same folder, or within the same model in the cache of Hugging Face's hub; whoever made the folder must
    not get other files of the reader's copied. Of an artifact they are among the files that its manifest lists.

    Args:
        folder: The folder.
        suffixes: Endings of names.
        excluded: Names that are left out.

    Raises:
        ArtifactError: A file is a link that leads elsewhere, no regular file, or cannot be read.
    """

    def __init__(self, folder: Path, suffixes: Collection[str] = COPIED, excluded: Collection[str] = ()) -> None:
        with read_lock(folder):
            if os.path.isfile(folder / MANIFEST):
                names: dict[str, FileEntry | None] = dict(Manifest.read(folder).files)
            else:
                names = dict.fromkeys(_files(folder))
            chosen = [name for name in names if _is_companion(name, suffixes) and name not in excluded]
            is_held = len(chosen) <= MAX_HELD
            self.files = {name: _opened(folder, name, names[name], is_held=is_held) for name in chosen}

    def copy(self, target: Path) -> None:
        """Copy them into a folder, but for those of which it has one of that name.

        Raises:
            ArtifactError: A file was changed meanwhile or cannot be read, or a copy cannot be written.
        """
        for name, file in self.files.items():
            if not os.path.lexists(target / name):
                file.copy(target / name)


def check_size(path: Path, size: int) -> None:
    """Raise `ArtifactError` if a file beside weights is so large that reading it takes no end."""
    if size > MAX_COMPANION_BYTES:
        raise ArtifactError(
            f"{path}: a file beside the weights must have {MAX_COMPANION_BYTES:,} bytes at the most, found {size:,}."
        )


def _files(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if not os.path.isdir(path))
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be read ({error}).") from error


def _is_companion(name: str, suffixes: Collection[str]) -> bool:
    path = Path(name)
    is_other = name == MANIFEST or name.endswith(INDEX_SUFFIX) or name.startswith(".")
    return len(path.parts) == 1 and path.suffix in suffixes and not is_other


def _opened(folder: Path, name: str, entry: FileEntry | None, *, is_held: bool) -> Companion:
    if entry is not None:
        return Companion(folder / name, entry, is_held=is_held)
    root = Path(os.path.realpath(folder))
    real = Path(os.path.realpath(root / name))
    if not any(real.is_relative_to(place) for place in (root, *_caches(root))):
        raise ArtifactError(
            f"{folder / name}: is a link to {str(real)!r}, outside of the folder, and is not copied. Put the file "
            f"itself there, or remove the link."
        )
    check_size(folder / name, FileReader(real, is_held=False).size)
    return Companion(real, is_held=is_held)


def _caches(folder: Path) -> list[Path]:
    """The folder of the model in the cache of the hub, if a folder is one of its snapshots."""
    return [
        place.parent
        for place in folder.parents
        if place.name == "snapshots" and place.parent.name.startswith(CACHE_PREFIX)
    ]
