"""Layers and runs of torch models."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._wording import format_count, format_list
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.compat.neural_compressor.layer_assignment import Layer, assign_layers, build_config
from secateur.config import PruningConfig
from secateur.frameworks.pytorch import unwrap_model
from secateur.oneshot import Execution
from secateur.oneshot.pytorch import prune
from secateur.planning.pytorch import find_candidates, plan
from secateur.results import PruningReport
from secateur.training.pytorch import PytorchPruner, prepare

__all__ = ["build_checked_config", "build_pruning_config", "prune_once", "save", "start_run"]

logger = logging.getLogger(__name__)


def build_pruning_config(config: WeightPruningConfig, model: nn.Module) -> tuple[PruningConfig, frozenset[str]]:
    """Build the `PruningConfig` for a model, and return it with the names of the matching layers."""
    found = [
        Layer(one.name, type(one.module).__name__, one.is_output) for one in find_candidates(model, prune_frozen=True)
    ]
    modules = [name for name, _ in unwrap_model(model).named_modules()]
    owners = assign_layers(config.entries, found, modules)
    return build_config(config.entries, owners), frozenset(owners)


def build_checked_config(config: WeightPruningConfig, model: nn.Module, *, prune_frozen: bool = False) -> PruningConfig:
    """Build the `PruningConfig` and check it; a warning lists matching layers that stay dense.

    Raises:
        SecateurError: The configuration does not fit the model.
    """
    own, meant = build_pruning_config(config, model)
    left = {name: reason for name, reason in plan(model, own, prune_frozen=prune_frozen).dense.items() if name in meant}
    if left:
        reasons = format_list((f"{name!r} ({reason})" for name, reason in left.items()), limit=3)
        logger.warning(
            "%s that the configuration matches cannot be pruned: %s.", format_count(len(left), "layer"), reasons
        )
    return own


def start_run(model: nn.Module, config: PruningConfig, optimizer: Any) -> PytorchPruner:
    """A run that follows the optimizer, or one whose steps are announced where that is ``None``."""
    return prepare(model, config, optimizer)


def prune_once(
    model: nn.Module, config: PruningConfig, *, solver: str, batches: Iterable[Any], device: Any
) -> PruningReport:
    """Prune by calibration data."""
    return prune(model, config, calibration=_Inputs(batches), solver=solver, execution=Execution(device=device))


def save(model: nn.Module, root: str | Path) -> Path:
    """Write the model's state to ``best_model.pt`` in a folder; returns the file."""
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(unwrap_model(model).state_dict(), folder / "best_model.pt")
    return folder / "best_model.pt"


class _Inputs:
    """Batches without labels: the first element of a sequence is the model's input."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield batch[0] if isinstance(batch, list | tuple) and batch else batch
