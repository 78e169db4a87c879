"""The file in a folder of checkpoints with the state of a pruner."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from secateur._third_party import translate_errors
from secateur.errors import StateError
from secateur.frameworks.pytorch import get_layer, is_plain_tensor, read_parameter
from secateur.training.pytorch import PytorchPruner

__all__ = ["FILE_NAME", "SavedPruner", "find_other_weights", "read_pruner", "save_pruner"]

FILE_NAME = "pruner.pt"

FORMAT = "secateur.pruner"

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element → the integer type with as many."""


class SavedPruner(NamedTuple):
    """What the file has.

    Attributes:
        state: The state of the pruner.
        checksums: Layer → type and checksum of its weight, to recognize the checkpoint that the state belongs to.
        complete_at: Step of the trainer at which the target was reached; ``None``: it had not been.
    """

    state: dict[str, Any]
    checksums: dict[str, tuple[str, int]]
    complete_at: int | None


def save_pruner(folder: Path, pruner: PytorchPruner, complete_at: int | None) -> None:
    """Write the state of a pruner into a folder; the file appears once it is complete."""
    names = [name for pattern in pruner.plan.patterns for name in pattern.views]
    content = {
        "format": FORMAT,
        "pruner": pruner.state_dict(),
        "checksums": compute_checksums(pruner.model, names),
        "complete_at": complete_at,
    }
    part = folder / f"{FILE_NAME}.part"
    torch.save(content, part)
    os.replace(part, folder / FILE_NAME)


def read_pruner(path: Path) -> SavedPruner:
    """Read a file that `save_pruner` wrote. It is not trusted: no code in it runs.

    Raises:
        StateError: The file is missing, damaged, or something else.
    """
    with translate_errors(StateError, f"{path} cannot be read", "Resume from another checkpoint."):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise StateError(f"{path} must be a file that a PruningCallback saved, found something else.")
    return SavedPruner(content["pruner"], content["checksums"], content["complete_at"])


def find_other_weights(model: nn.Module, saved: SavedPruner) -> list[str]:
    """Find the layers whose weights differ from those that were saved with the state.

    Layers that the model does not have are left out: loading the state reports them. So are weights of another type,
    which training may resume with.
    """
    found = compute_checksums(model, saved.checksums)
    pairs = {name: (value, saved.checksums[name]) for name, value in found.items()}
    return [name for name, (now, before) in pairs.items() if now[0] == before[0] and now[1] != before[1]]


def compute_checksums(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Compute the type and a checksum of each weight that the model has and that is not sharded.

    The checksum is the sum of the elements, read as integers.

    Examples:
        >>> model = nn.ModuleDict({"a": nn.Linear(2, 2)})
        >>> _ = nn.init.zeros_(model["a"].weight)
        >>> compute_checksums(model, ["a", "b"])
        {'a': ('float32', 0)}
    """
    weights = {name: _find_weight(model, name) for name in names}
    return {
        name: (
            str(weight.dtype).rpartition(".")[2],
            int(weight.contiguous().view(BITS[weight.element_size()]).sum(dtype=torch.int64)),
        )
        for name, weight in weights.items()
        if weight is not None and is_plain_tensor(weight)
    }


def _find_weight(model: nn.Module, name: str) -> torch.Tensor | None:
    try:
        weight = read_parameter(get_layer(model, name))
    except AttributeError:
        return None
    return None if weight is None else weight.detach()
