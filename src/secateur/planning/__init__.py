"""Plan a run: which layers will be pruned, and how, and why the others stay dense."""

from __future__ import annotations

from typing import Any

from secateur.config import ConfigLike
from secateur.frameworks import import_leaf
from secateur.planning.groups import PlannedGroup
from secateur.planning.layers import PlannedLayer
from secateur.planning.planner import Plan

__all__ = ["Plan", "PlannedGroup", "PlannedLayer", "plan"]


def plan(model: Any, config: ConfigLike, *, example_inputs: Any = None) -> Plan:
    """List how each layer will be pruned, or why it stays dense, without changing the model.

    Args:
        model: A torch module or a Keras model.
        config: A `PruningConfig`, a plain mapping with the same keys, or a pattern such as ``"2:4"``.
        example_inputs: For the patterns ``"channels"`` and ``"heads"``: one batch in the form that the model accepts (a
            tensor, a tuple of positional arguments, or a mapping of named ones), with which the weights that share
            channels or heads are found; or the graph that `secateur.graph.trace` returned for the model. ``"channels"``
            needs it; without it, ``"heads"`` recognizes usual attention by the names and shapes of its projections.

    Raises:
        SecateurError: The configuration does not fit the model; `secateur.prepare` would raise the same.

    Examples:
        >>> import torch, secateur
        >>> secateur.plan(torch.nn.Linear(8, 8), {"pattern": "4x1"}).layers[0].units
        16
    """
    result: Plan = import_leaf("secateur.planning", model).plan(model, config, example_inputs=example_inputs)
    return result
