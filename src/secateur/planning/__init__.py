"""The dry run: which layers are pruned and how, or why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.config import PruningConfig
from secateur.frameworks import import_leaf
from secateur.planning.layers import PlannedLayer
from secateur.planning.planner import Plan

__all__ = ["Plan", "PlannedLayer", "plan"]


def plan(model: Any, config: PruningConfig | Mapping[str, Any]) -> Plan:
    """List every layer with what will happen to it; nothing is changed.

    Args:
        model: A torch module or a Keras model.
        config: A `PruningConfig`, or a plain mapping with the same keys.

    Raises:
        SecateurError: The configuration does not fit the model; `secateur.prepare` would raise the same.

    Example:
        >>> import torch, secateur
        >>> secateur.plan(torch.nn.Linear(8, 8), {"pattern": "4x1"}).layers[0].units
        16
    """
    made: Plan = import_leaf("secateur.planning", model).plan(model, config)
    return made
