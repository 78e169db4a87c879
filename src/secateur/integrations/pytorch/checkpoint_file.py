"""The file in a folder of checkpoints with the state of a pruner."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from secateur._third_party import translate_errors
from secateur.distributed.pytorch.shards import ShardLayout, get_local, is_sharded, reshard
from secateur.errors import StateError
from secateur.frameworks.pytorch import get_layer, is_plain_tensor, read_parameter
from secateur.integrations.pytorch.sharding import gather_state
from secateur.training.pytorch import PytorchPruner

__all__ = ["FILE_NAME", "SavedPruner", "find_other_weights", "read_pruner", "save_pruner", "snapshot_pruner"]

FILE_NAME = "pruner.pt"

FORMAT = "secateur.pruner"

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element → the integer type with as many."""


class SavedPruner(NamedTuple):
    """The content of the file.

    Attributes:
        state: The state of the pruner.
        checksums: Layer → type and checksum of its weight, to recognize the checkpoint that the state belongs to.
        complete_at: Step of the trainer at which the target was reached; ``None``: it had not been.
    """

    state: dict[str, Any]
    checksums: dict[str, tuple[str, int]]
    complete_at: int | None


def snapshot_pruner(pruner: PytorchPruner, complete_at: int | None, *, keeps: bool = True) -> dict[str, Any]:
    """Return the content of the file. If weights are sharded, all processes must call this.

    Args:
        pruner: The pruner.
        complete_at: See `SavedPruner`.
        keeps: Whether this process writes the file.
    """
    names = [name for pattern in pruner.plan.patterns for name in pattern.views]
    return {
        "format": FORMAT,
        "pruner": gather_state(pruner, keeps=keeps),
        "checksums": compute_checksums(pruner.model, names),
        "complete_at": complete_at,
    }


def save_pruner(folder: Path, content: Mapping[str, Any]) -> None:
    """Write what `snapshot_pruner` returned into a folder, atomically."""
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
    which training may resume with. If weights are sharded, all processes must call this.
    """
    found = compute_checksums(model, saved.checksums)
    pairs = {name: (value, saved.checksums[name]) for name, value in found.items()}
    return [name for name, (now, before) in pairs.items() if now[0] == before[0] and now[1] != before[1]]


def compute_checksums(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Compute the type and a checksum of each weight that the model has.

    The checksum is the sum of the elements, read as integers. The sum of a sharded weight is that of its shards, for
    which all processes must call this.

    Examples:
        >>> model = nn.ModuleDict({"a": nn.Linear(2, 2)})
        >>> _ = nn.init.zeros_(model["a"].weight)
        >>> compute_checksums(model, ["a", "b"])
        {'a': ('float32', 0)}
    """
    if dist.is_available():
        reshard(model)  # evaluation leaves unsharded weights in the model
    weights = {name: _find_weight(model, name) for name in names}
    return {
        name: (str(weight.dtype).rpartition(".")[2], _add_bits(weight))
        for name, weight in weights.items()
        if weight is not None and (is_plain_tensor(weight) or is_sharded(weight))
    }


def _add_bits(weight: torch.Tensor) -> int:
    local = get_local(weight).contiguous()
    total = int(local.view(BITS[local.element_size()]).sum(dtype=torch.int64))
    return ShardLayout(weight).add(total) if is_sharded(weight) else total


def _find_weight(model: nn.Module, name: str) -> torch.Tensor | None:
    try:
        weight = read_parameter(get_layer(model, name))
    except AttributeError:
        return None
    return None if weight is None else weight.detach()
