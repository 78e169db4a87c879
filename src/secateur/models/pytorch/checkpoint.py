"""Open the tensors and the other files of a transformers folder, in any weight format."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from secateur._huggingface.companions import CompanionFiles
from secateur._huggingface.folders import PICKLE_INDEX_FILE, PICKLE_WEIGHTS_FILE, find_weight_files, read_weight_map
from secateur.artifact.checkpoints import open_checkpoint
from secateur.artifact.pytorch.tensors import NAMES, find_aliases, read_bits
from secateur.artifact.reader import Artifact, is_artifact_folder
from secateur.artifact.source import Source, SourceTensor, guess_view
from secateur.models.pytorch.weights import read_state

__all__ = ["open_model_folder"]


def open_model_folder(path: Path) -> Source | None:
    """Open the weights and companion files of a model folder; ``None``: it has no weights in a known format.

    Raises:
        ArtifactError: A file cannot be read, or must not be copied.
        ModelLoadError: A file is not a state dict.
    """
    if is_artifact_folder(path):
        return Artifact(path).make_source()
    if find_weight_files(path)[0]:
        return open_checkpoint(path, copies_files=True)
    state: dict[str, torch.Tensor] = {}
    for file in _list_pickles(path):
        state |= {name: value for name, value in read_state(file).items() if isinstance(value, torch.Tensor)}
    tensors, aliases = find_aliases(state)
    if not tensors:
        return None
    return Source(
        tensors={
            name: SourceTensor(
                dtype=NAMES[tensor.dtype],
                shape=tuple(tensor.shape),
                read=partial(read_bits, tensor),
                view=guess_view(tuple(tensor.shape)),
            )
            for name, tensor in tensors.items()
        },
        aliases=aliases,
        write_files=CompanionFiles(path).copy,
    )


def _list_pickles(path: Path) -> list[Path]:
    if (path / PICKLE_INDEX_FILE).is_file():
        return sorted({path / name for name in read_weight_map(path / PICKLE_INDEX_FILE).values()})
    file = path / PICKLE_WEIGHTS_FILE
    return [file] if file.is_file() else []
