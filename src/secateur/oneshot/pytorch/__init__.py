"""Pruning a torch model once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from secateur.config import PruningConfig
from secateur.frameworks.pytorch import unwrap_model
from secateur.masking.pytorch import ParameterWeight
from secateur.oneshot.calibration import Calibration
from secateur.oneshot.magnitude import drop_schedule, prune_weights
from secateur.oneshot.pytorch.calibrated_run import CalibratedRun
from secateur.oneshot.pytorch.memory import explain_out_of_memory
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.planning.pytorch import plan
from secateur.results import PruningReport

__all__ = ["prune"]

SCOPES = {"uniform": "local", "global": "global"}
"""Allocation → the ``pruning_scope`` that does the same without calibration data."""


def prune(
    model: nn.Module,
    config: PruningConfig | Mapping[str, Any],
    *,
    calibration: Calibration | Iterable[Any] | None = None,
    solver: Any = "magnitude",
    refine: Any = (),
    allocation: Any = None,
) -> PruningReport:
    """See `secateur.prune`."""
    config = config if isinstance(config, PruningConfig) else PruningConfig.from_dict(config)
    if calibration is None and allocation in SCOPES:
        config, allocation = config.model_copy(update={"pruning_scope": SCOPES[allocation]}), None
    if allocation is None:
        # Left out, pruning_scope means "uniform" with calibration data: scores of layers are rarely comparable then.
        is_global = config.pruning_scope == "global" and calibration is not None
        allocation = "global" if is_global else "uniform"
    recipe = Recipe.of(solver, refine, allocation)
    made = plan(model, drop_schedule(config), prune_frozen=True)
    if calibration is None:
        recipe.refuse_without_data()
        weights = {name: ParameterWeight(name, pattern) for pattern in made.patterns for name in pattern.views}
        with torch.no_grad(), explain_out_of_memory():
            return prune_weights(made, weights, sum(weight.numel() for weight in unwrap_model(model).parameters()))
    given = calibration if isinstance(calibration, Calibration) else Calibration(calibration)
    with explain_out_of_memory():
        return CalibratedRun(model, made, recipe, given).prune()
