"""Weights that other tools wrote: safetensors files, and folders of transformers."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from secateur._packages import is_installed
from secateur._wording import brief, listed
from secateur.artifact.dtypes import DTYPES
from secateur.artifact.files import small_file
from secateur.artifact.manifest import Builder
from secateur.artifact.safetensors_file import TensorFile, parsed_json
from secateur.artifact.source import Source, SourceTensor, usual_view
from secateur.artifact.writer import INDEX
from secateur.errors import ArtifactError, ModelLoadError
from secateur.patterns.view import WeightView

__all__ = ["COPIED", "foreign_source"]

SUFFIX = ".safetensors"
SINGLE = "model.safetensors"
CONFIG = "config.json"

MOST_INDEX_BYTES = 100_000_000

COPIED = frozenset({".jinja", ".json", ".model", ".tiktoken", ".txt"})
"""Files beside the weights that make a model usable: configuration and tokenizer."""

Known = Mapping[str, tuple[WeightView, str, bool] | None]
"""Parameter → its view, its layer, and whether a plan would prune it; ``None``: no pattern does."""


def foreign_source(path: Path) -> Source:
    """The tensors of a safetensors file, or of a folder with such files.

    In a folder of transformers the layers are known if transformers is installed; what is not known and has two axes or
    more counts as the weight of a layer (output channels, input channels, kernel).

    Raises:
        ArtifactError: There are none, or one is damaged.
    """
    files = [TensorFile(file) for file in _files(path)]
    names = Counter(name for file in files for name in file)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ArtifactError(f"{path}: {listed(map(repr, twice))} stand in several files.")
    is_folder = path.is_dir()
    known = _known_layers(path) if is_folder and os.path.isfile(path / CONFIG) else None
    model = None if known is None else Builder(framework="pytorch", kind="transformers", name="PreTrainedModel")
    return Source(
        tensors={name: _tensor(name, file, known) for file in files for name in file},
        model=model,
        write_files=partial(_copy_files, path) if is_folder else lambda folder: None,  # noqa: ARG005
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
        read=partial(file.read, name),
        view=view,
        layer=layer,
        is_prunable=is_prunable,
    )


def _files(path: Path) -> list[Path]:
    """The files that count."""
    if path.suffix == SUFFIX and os.path.isfile(path):
        return [path]
    if os.path.isfile(path / INDEX):
        places = parsed_json(small_file(path / INDEX, MOST_INDEX_BYTES), path / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise ArtifactError(f"{path / INDEX}: 'weight_map' must say for each tensor in which file it is.")
        if strange := [place for place in places.values() if Path(place).name != place or not place.isprintable()]:
            raise ArtifactError(f"{path / INDEX}: {brief(strange[0])} is no name of a file in the folder.")
        return sorted({path / place for place in places.values()})
    if os.path.isfile(path / SINGLE):
        return [path / SINGLE]
    if found := sorted(path.glob(f"*{SUFFIX}")):
        return found
    raise ArtifactError(
        f"{path}: an artifact, a {SUFFIX} file or a folder with such files is needed, found "
        f"{'a folder without any' if os.path.isdir(path) else 'another file' if os.path.exists(path) else 'nothing'}."
    )


def _known_layers(folder: Path) -> Known | None:
    """The layers of the model that a folder describes; ``None``: nothing here can tell."""
    if not (is_installed("torch") and is_installed("transformers")):
        return None
    from secateur.artifact.pytorch import described_layers

    try:
        return described_layers(folder)
    except ModelLoadError:
        return None


def _copy_files(path: Path, folder: Path) -> None:
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in COPIED and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
