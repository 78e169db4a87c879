"""Pruning while a model trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from secateur._packages import need
from secateur.config import PruningConfig
from secateur.training.result import LayerResult, PruningReport

if TYPE_CHECKING:
    from secateur.training.pytorch import Pruner

__all__ = ["LayerResult", "PruningReport", "prepare"]


def prepare(model: Any, config: PruningConfig | Mapping[str, Any], *, optimizer: Any | Iterable[Any]) -> Pruner:
    """Have a model pruned while its own training loop runs.

    The pruner hooks into the optimizer: after each of its steps what is pruned is exactly zero, and when the schedule
    says so, more is pruned. The loop itself does not change.

    Args:
        model: A torch module, compiled or not.
        config: A `PruningConfig`, or a plain mapping with the same keys.
        optimizer: The optimizer that trains the model, or several of them.

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
    need("torch", extra="torch")
    from secateur.training.pytorch import prepare as prepare_torch

    return prepare_torch(model, config, optimizer=optimizer)
