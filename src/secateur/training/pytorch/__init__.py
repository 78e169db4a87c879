"""Pruning while a torch model trains, through the optimizer's own hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from secateur.config import PruningConfig
from secateur.errors import UnsupportedModelError
from secateur.masking.pytorch import ParameterWeight
from secateur.planning.pytorch import plan as plan_torch
from secateur.training.pytorch.pruner import Pruner

__all__ = ["ParameterWeight", "Pruner", "prepare", "prepare_by_hand"]


def prepare(
    model: nn.Module,
    config: PruningConfig | Mapping[str, Any],
    *,
    optimizer: Optimizer | Iterable[Optimizer],
) -> Pruner:
    """See `secateur.prepare`."""
    given = tuple(optimizer) if isinstance(optimizer, Iterable) else (optimizer,)
    return Pruner(model, plan_torch(model, config), tuple(_own_optimizer(found) for found in given))


def prepare_by_hand(model: nn.Module, config: PruningConfig | Mapping[str, Any]) -> Pruner:
    """Prune a torch model in a loop whose optimizer is not accessible.

    Such a loop calls `Pruner.before_step` and `Pruner.after_step` around each step of the optimizer. Else it is as with
    `secateur.prepare`, but that there is no group lasso, whose strength goes with a learning rate, and that gradients
    must be free of a loss scale when `Pruner.before_step` is called.

    Args:
        model: A torch module, compiled or not.
        config: A `PruningConfig`, or a plain mapping with the same keys.

    Raises:
        SecateurError: As `secateur.prepare`; or the configuration asks for group lasso.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = PruningConfig(pattern="4x1", target_sparsity=0.5, end_step=20)
        >>> pruner = prepare_by_hand(model, config)
        >>> for step in range(30):
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     pruner.before_step()
        ...     optimizer.step()
        ...     pruner.after_step()
        ...     optimizer.zero_grad()
        >>> pruner.finalize().sparsity
        0.5
    """
    return Pruner(model, plan_torch(model, config), None)


def _own_optimizer(found: Any) -> Optimizer:
    """The optimizer inside the wrappers that training frameworks put around it."""
    while isinstance(inner := getattr(found, "optimizer", None), Optimizer):
        found = inner
    if not isinstance(found, Optimizer):
        raise UnsupportedModelError(f"optimizer must be a torch.optim.Optimizer, found {type(found).__name__}.")
    return found
