"""Pruning while a model trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from secateur._frameworks import leaf
from secateur.config import PruningConfig
from secateur.results import LayerResult, PruningReport

__all__ = ["LayerResult", "PruningReport", "prepare"]


def prepare(model: Any, config: PruningConfig | Mapping[str, Any], *, optimizer: Any | Iterable[Any]) -> Any:
    """Have a model pruned while its own training loop runs.

    For a torch model the pruner hooks into the optimizer: after each of its steps what is pruned is exactly zero, and
    when the schedule says so, more is pruned. The loop itself does not change. For a Keras model the optimizer that is
    returned takes the place of the given one, and a callback updates the masks; see `secateur.keras.PruningOptimizer`.

    Args:
        model: A torch module, compiled or not, or a built Keras model.
        config: A `PruningConfig`, or a plain mapping with the same keys.
        optimizer: The optimizer that trains the model; for torch also several of them.

    Returns:
        A `secateur.training.pytorch.Pruner` for a torch model, a `secateur.keras.PruningOptimizer` for a Keras model.

    Raises:
        SecateurError: The configuration fits neither itself nor the model, a weight is ``nan``, or no optimizer holds a
            layer that is to be pruned. Nothing is changed then.

    Example:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = secateur.PruningConfig(pattern="4x1", target_sparsity=0.5, end_step=20)
        >>> pruner = secateur.prepare(model, config, optimizer=optimizer)
        >>> for step in range(30):
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruner.finalize().sparsity
        0.5
    """
    return leaf("secateur.training", model).prepare(model, config, optimizer=optimizer)
