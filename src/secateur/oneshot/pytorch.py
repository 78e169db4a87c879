"""Pruning a torch model once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from secateur.config import PruningConfig
from secateur.oneshot.magnitude import at_once, prune_weights
from secateur.planning.pytorch import plan, unwrapped
from secateur.training.pytorch import ParameterWeight
from secateur.training.result import PruningReport

__all__ = ["prune"]


@torch.no_grad()
def prune(model: nn.Module, config: PruningConfig | Mapping[str, Any]) -> PruningReport:
    """See `secateur.prune`."""
    made = plan(model, at_once(config), prune_frozen=True)
    weights = {name: ParameterWeight(name, pattern) for pattern in made.patterns for name in pattern.views}
    return prune_weights(made, weights, sum(weight.numel() for weight in unwrapped(model).parameters()))
