"""Open checkpoints that other tools wrote: safetensors files and transformers folders."""

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
from secateur.artifact.source import Source, SourceTensor, guess_view
from secateur.errors import ArtifactError, ModelLoadError
from secateur.frameworks.view import WeightView

__all__ = ["open_checkpoint"]

KnownLayers = Mapping[str, tuple[WeightView, str, bool] | None]
"""Parameter → its view, its layer, and whether a plan would prune the layer; ``None``: no pattern applies to it."""


def open_checkpoint(path: Path, *, copies_files: bool = False) -> Source:
    """Open a safetensors file, or a folder of safetensors files.

    If transformers is installed, the layers of a transformers folder are known. Otherwise, every tensor with two or
    more axes counts as the weight of a layer (output channels, input channels, kernel). All files are opened
    immediately; if another process changes or replaces one later, reading it raises an error.

    Args:
        path: The file or folder.
        copies_files: Whether companion files will be copied; see `CompanionFiles`.

    Raises:
        ArtifactError: There are no such files, a file is damaged, or the files do not belong together.
    """
    paths, weight_map = find_weight_files(path)
    if not paths:
        kind = "a folder without any" if os.path.isdir(path) else "another file" if os.path.exists(path) else "nothing"
        raise ArtifactError(
            f"{path}: must be an artifact, a {SAFETENSORS_SUFFIX} file or a folder of such files, found {kind}."
        )
    files = [TensorFile(file, keep_open=len(paths) <= MAX_OPEN_FILES) for file in paths]
    owners = _map_tensors(path, files)
    if weight_map is not None:
        _check_index(path / INDEX_FILE, weight_map, {name: file.path.name for name, file in owners.items()})
    is_folder = os.path.isdir(path)
    companions = CompanionFiles(path) if copies_files and is_folder else None
    for file in files:
        file.file.check_in_place()
    layers = _find_layers(path) if is_folder and os.path.isfile(path / CONFIG_FILE) else None
    model = None if layers is None else Builder(framework="pytorch", kind="transformers", name="PreTrainedModel")
    return Source(
        tensors={name: _make_tensor(name, file, layers) for name, file in owners.items()},
        model=model,
        write_files=companions.copy if companions is not None else lambda folder: None,  # noqa: ARG005
    )


def _map_tensors(path: Path, files: Sequence[TensorFile]) -> dict[str, TensorFile]:
    """Map each tensor to the file that contains it."""
    owners: dict[str, TensorFile] = {}
    duplicates: dict[str, None] = {}
    for file in files:
        for name in file:
            if owners.setdefault(name, file) is not file:
                duplicates[name] = None
    if duplicates:
        raise ArtifactError(
            f"{path}: {format_list(map(format_value, duplicates))} are in more than one file. Keep one copy of each."
        )
    if not owners:
        raise ArtifactError(f"{path}: contains no tensors.")
    return owners


def _check_index(index: Path, expected: Mapping[str, str], actual: Mapping[str, str]) -> None:
    """Raise `ArtifactError` if an index does not match the files."""
    for name in {**expected, **actual}:
        expected_file, actual_file = expected.get(name), actual.get(name)
        if expected_file != actual_file:
            raise ArtifactError(
                f"{index}: tensor {format_value(name)} must be in "
                f"{format_value(expected_file) if expected_file else 'no file'}, found it in "
                f"{format_value(actual_file) if actual_file else 'none'}. Check that the files are complete and "
                f"belong to one model."
            )


def _make_tensor(name: str, file: TensorFile, layers: KnownLayers | None) -> SourceTensor:
    header = file[name]
    view = guess_view(header.shape) if DTYPES[header.dtype].is_float else None
    # A checkpoint may have names that the model does not have; the layers of these tensors are unknown.
    layer = name.removesuffix(".weight") if view is not None and name not in (layers or {}) else None
    is_prunable = layer is not None
    known = (layers or {}).get(name)
    if known is not None and known[0].shape == header.shape:
        view, layer, is_prunable = known
    return SourceTensor(
        dtype=header.dtype,
        shape=header.shape,
        read=partial(_read_tensor, file, name),
        view=view,
        layer=layer,
        is_prunable=is_prunable,
    )


def _read_tensor(file: TensorFile, name: str) -> Bits:
    """Read a tensor, and check that the file has not changed since it was opened: it has no digests."""
    bits = file.read(name)
    file.file.check_unchanged()
    return bits


def _find_layers(folder: Path) -> KnownLayers | None:
    """Find the layers of the model in a transformers folder; ``None``: transformers is missing or cannot build it."""
    if not (is_installed("torch") and is_installed("transformers")):
        return None
    from secateur.artifact.pytorch import describe_layers

    try:
        return describe_layers(folder)
    except ModelLoadError:
        return None
