"""Build configurations for torch models, and start runs."""

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

__all__ = ["build_checked_config", "build_pruning_config", "prune_in_one_shot", "save", "start_run"]

logger = logging.getLogger(__name__)


def build_pruning_config(config: WeightPruningConfig, model: nn.Module) -> tuple[PruningConfig, frozenset[str]]:
    """Build the `PruningConfig` for a model, and return it with the names of the matching layers."""
    layers = [
        Layer(candidate.name, type(candidate.module).__name__, candidate.is_output)
        for candidate in find_candidates(model, prune_frozen=True)
    ]
    modules = [name for name, _ in unwrap_model(model).named_modules()]
    owners = assign_layers(config.entries, layers, modules)
    return build_config(config.entries, owners), frozenset(owners)


def build_checked_config(config: WeightPruningConfig, model: nn.Module, *, prune_frozen: bool = False) -> PruningConfig:
    """Build the `PruningConfig` and check it; a warning lists matching layers that stay dense.

    Raises:
        SecateurError: The configuration does not fit the model.
    """
    settings, matching = build_pruning_config(config, model)
    reasons = plan(model, settings, prune_frozen=prune_frozen).dense
    dense = [f"{name!r} ({reason})" for name, reason in reasons.items() if name in matching]
    if dense:
        logger.warning(
            "%s that the configuration matches cannot be pruned: %s.",
            format_count(len(dense), "layer"),
            format_list(dense, limit=3),
        )
    return settings


def start_run(model: nn.Module, config: PruningConfig, optimizer: Any) -> PytorchPruner:
    """Start a run that follows the optimizer, or, without one, a run whose steps the loop announces."""
    return prepare(model, config, optimizer)


def prune_in_one_shot(
    model: nn.Module, config: PruningConfig, *, solver: str, batches: Iterable[Any], device: Any
) -> PruningReport:
    """Prune a model with calibration data."""
    return prune(model, config, calibration=_ModelInputs(batches), solver=solver, execution=Execution(device=device))


def save(model: nn.Module, root: str | Path) -> Path:
    """Save the model's state as ``best_model.pt`` in a folder, and return the file."""
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(unwrap_model(model).state_dict(), folder / "best_model.pt")
    return folder / "best_model.pt"


class _ModelInputs:
    """Iterates over batches without their labels: the first element of a sequence is the model's input."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield batch[0] if isinstance(batch, list | tuple) and batch else batch
