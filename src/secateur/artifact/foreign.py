"""Weights that other tools wrote: safetensors files, and folders of transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from secateur._files import MAX_OPEN_FILES
from secateur._huggingface.companions import CompanionFiles
from secateur._huggingface.folders import CONFIG_FILE, INDEX_FILE, SAFETENSORS_SUFFIX, find_weight_files
from secateur._packages import is_installed
from secateur._wording import format_list, format_value
from secateur.artifact.dtypes import DTYPES, Bits
from secateur.artifact.manifest import Builder
from secateur.artifact.safetensors_file import TensorFile
from secateur.artifact.source import Source, SourceTensor, usual_view
from secateur.errors import ArtifactError, ModelLoadError
from secateur.frameworks.view import WeightView

__all__ = ["foreign_source"]

Known = Mapping[str, tuple[WeightView, str, bool] | None]
"""Parameter → its view, its layer, and whether a plan would prune it; ``None``: no pattern does."""


def foreign_source(path: Path, *, is_copied: bool = False) -> Source:
    """The tensors of a safetensors file, or of a folder with such files.

    In a folder of transformers the layers are known if transformers is installed; what is not known and has two axes or
    more counts as the weight of a layer (output channels, input channels, kernel). All files are opened now: what
    another process changes or replaces later is an error when it is read.

    Args:
        path: The file or folder.
        is_copied: Whether the files beside the weights are to be copied; see `CompanionFiles`.

    Raises:
        ArtifactError: There are none, one is damaged, or they do not belong together.
    """
    paths, places = find_weight_files(path)
    if not paths:
        kind = "a folder without any" if os.path.isdir(path) else "another file" if os.path.exists(path) else "nothing"
        raise ArtifactError(
            f"{path}: must be an artifact, a {SAFETENSORS_SUFFIX} file or a folder with such files, found {kind}."
        )
    files = [TensorFile(file, keep_open=len(paths) <= MAX_OPEN_FILES) for file in paths]
    owners = _owners(path, files)
    if places is not None:
        _check_index(path / INDEX_FILE, places, {name: file.path.name for name, file in owners.items()})
    is_folder = os.path.isdir(path)
    companions = CompanionFiles(path) if is_copied and is_folder else None
    for file in files:
        file.file.check_in_place()
    known = _known_layers(path) if is_folder and os.path.isfile(path / CONFIG_FILE) else None
    model = None if known is None else Builder(framework="pytorch", kind="transformers", name="PreTrainedModel")
    return Source(
        tensors={name: _tensor(name, file, known) for name, file in owners.items()},
        model=model,
        write_files=companions.copy if companions is not None else lambda folder: None,  # noqa: ARG005
    )


def _owners(path: Path, files: Sequence[TensorFile]) -> dict[str, TensorFile]:
    """Name → the file that holds the tensor."""
    owners: dict[str, TensorFile] = {}
    twice: dict[str, None] = {}
    for file in files:
        for name in file:
            if owners.setdefault(name, file) is not file:
                twice[name] = None
    if twice:
        raise ArtifactError(f"{path}: {format_list(map(format_value, twice))} stand in several files.")
    if not owners:
        raise ArtifactError(f"{path}: holds no tensor.")
    return owners


def _check_index(index: Path, places: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise `ArtifactError` if an index and the files do not say the same."""
    for name in {**places, **found}:
        said, is_in = places.get(name), found.get(name)
        if said != is_in:
            raise ArtifactError(
                f"{index}: tensor {format_value(name)} must be in {format_value(said) if said else 'no file'}, found "
                f"it in {format_value(is_in) if is_in else 'none'}. Are the files of one model, and complete?"
            )


def _tensor(name: str, file: TensorFile, known: Known | None) -> SourceTensor:
    stored = file[name]
    view = usual_view(stored.shape) if DTYPES[stored.dtype].is_float else None
    found = (known or {}).get(name)
    # A name that the model does not have is one of a checkpoint's own, and nobody here knows more of it.
    layer = name.removesuffix(".weight") if view is not None and name not in (known or {}) else None
    is_prunable = layer is not None
    if found is not None and found[0].shape == stored.shape:
        view, layer, is_prunable = found
    return SourceTensor(
        dtype=stored.dtype,
        shape=stored.shape,
        read=partial(_read, file, name),
        view=view,
        layer=layer,
        is_prunable=is_prunable,
    )


def _read(file: TensorFile, name: str) -> Bits:
    """A tensor of a file without digests, which must be as it was when it was opened."""
    bits = file.read(name)
    file.file.check_unchanged()
    return bits


def _known_layers(folder: Path) -> Known | None:
    """The layers of the model that a folder describes; ``None``: nothing here can tell."""
    if not (is_installed("torch") and is_installed("transformers")):
        return None
    from secateur.artifact.pytorch import described_layers

    try:
        return described_layers(folder)
    except ModelLoadError:
        return None
