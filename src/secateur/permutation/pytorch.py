"""Reorder the hidden channels of a torch model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from secateur.config import ConfigLike, make_config
from secateur.frameworks.pytorch import unwrap_model
from secateur.oneshot.pytorch.calibration.batches import read_batches
from secateur.oneshot.pytorch.permutation.grouped_layers import refuse_patterns
from secateur.oneshot.pytorch.permutation.reordering import Reordering
from secateur.planning.pytorch import plan
from secateur.results.permutation_report import PermutationReport
from secateur.slimming.pytorch.checks import refuse_model

__all__ = ["permute_channels"]


def permute_channels(model: nn.Module, config: ConfigLike, calibration: Iterable[Any]) -> PermutationReport:
    """See `secateur.permutation.permute_channels`."""
    model = unwrap_model(model)
    refuse_model(model)
    batches = read_batches(model, calibration)
    model_plan = plan(model, make_config(config), prune_frozen=True)
    refuse_patterns(model_plan.patterns)
    report, _ = Reordering(model, model_plan, batches).search(lambda *_: None)
    return report
