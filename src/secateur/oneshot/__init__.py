"""Pruning a trained model once, without an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur._frameworks import leaf
from secateur.config import PruningConfig
from secateur.training.result import PruningReport

__all__ = ["prune"]


def prune(model: Any, config: PruningConfig | Mapping[str, Any]) -> PruningReport:
    """Prune a model to its target now, in place.

    Units are ranked by the weights as they are, nothing is trained or repaired afterwards, and nothing holds the zeros
    if the model is trained again (``kind="pattern_lock"`` of `secateur.prepare` does). What a configuration says about
    steps, schedules and regularizers has no meaning here.

    Args:
        model: A torch module, or a built Keras model.
        config: A `PruningConfig`, or a plain mapping with the same keys. Its criterion must not need gradients.

    Returns:
        What was pruned, per layer and in all; verified against masks and weights.

    Raises:
        SecateurError: The configuration fits neither itself nor the model, its criterion needs gradients, or a weight
            is ``nan``. The model is as it was then.

    Example:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> secateur.prune(model, {"pattern": "2:4"}).sparsity
        0.5
    """
    report: PruningReport = leaf("secateur.oneshot", model).prune(model, config)
    return report
