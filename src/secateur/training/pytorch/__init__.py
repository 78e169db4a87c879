"""Prune a torch model while it trains, with hooks of its optimizer."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from secateur._deprecated import serve_old_names, warn_deprecated
from secateur.config import ConfigLike
from secateur.masking.pytorch import ParameterWeight
from secateur.planning.pytorch import plan as plan_torch
from secateur.training.pytorch.pruner import PytorchPruner
from secateur.training.pytorch.wrappers import unwrap_optimizer

__all__ = ["ParameterWeight", "PytorchPruner", "prepare", "prepare_by_hand"]

__getattr__ = serve_old_names(__name__, {"Pruner": "secateur.training.pytorch:PytorchPruner"})


def prepare(
    model: nn.Module,
    config: ConfigLike,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
) -> PytorchPruner:
    """See `secateur.prepare`.

    Without an optimizer, gradients must not have a loss scale when `PytorchPruner.before_step` is called, and group
    lasso is not available, because it requires the learning rate.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = {"pattern": "4x1", "target_sparsity": 0.5, "end_step": 20}
        >>> pruner = prepare(model, config)
        >>> for step in range(30):
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     pruner.before_step()
        ...     optimizer.step()
        ...     pruner.after_step()
        ...     optimizer.zero_grad()
        >>> pruner.finalize().sparsity
        0.5
    """
    if optimizer is None:
        return PytorchPruner(model, plan_torch(model, config), None)
    optimizers = tuple(optimizer) if isinstance(optimizer, Iterable) else (optimizer,)
    chains = [unwrap_optimizer(optimizer) for optimizer in optimizers]
    wrappers = [wrapper for chain in chains for wrapper in chain[:-1]]
    return PytorchPruner(model, plan_torch(model, config), tuple(chain[-1] for chain in chains), wrappers)


def prepare_by_hand(model: nn.Module, config: ConfigLike) -> PytorchPruner:
    """Deprecated: `secateur.prepare` without an optimizer."""
    warn_deprecated("secateur.training.pytorch.prepare_by_hand(model, config)", "secateur.prepare(model, config)")
    return prepare(model, config)
