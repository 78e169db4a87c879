"""Prune a torch model while it trains, with hooks of its optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from secateur._deprecated import serve_old_names, warn_deprecated
from secateur.config import ConfigLike
from secateur.distributed.pytorch.rank_groups import RankGroups
from secateur.frameworks.pytorch import unwrap_model
from secateur.masking.pytorch import ParameterWeight
from secateur.masking.run_options import RunOptions
from secateur.planning.pytorch import plan as plan_torch
from secateur.training.pytorch.agreement import agree_on_run
from secateur.training.pytorch.pruner import PytorchPruner
from secateur.training.pytorch.weight import ManualOptimizer
from secateur.training.pytorch.wrappers import unwrap_optimizer

__all__ = ["ParameterWeight", "PytorchPruner", "prepare", "prepare_by_hand", "prepare_together"]

__getattr__ = serve_old_names(__name__, {"Pruner": "secateur.training.pytorch:PytorchPruner"})


def prepare(
    model: nn.Module,
    config: ConfigLike,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    *,
    example_inputs: Any = None,
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
    return prepare_together(model, [config], optimizer, example_inputs=example_inputs)[0]


def prepare_together(
    model: nn.Module,
    configs: Sequence[ConfigLike],
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    options: Sequence[RunOptions | None] | None = None,
    *,
    example_inputs: Any = None,
) -> list[PytorchPruner]:
    """Prune a model with several pruners, each with its own configuration and masks.

    Their layers may be the same: a weight is then zero where the mask of any of them is, and they rank the weights with
    these zeros. Without an optimizer, call `before_step` and `after_step` of all of them around each step.

    Args:
        model: See `secateur.prepare`.
        configs: The configuration of each pruner.
        optimizer: See `secateur.prepare`.
        options: For each configuration, settings that it does not have, or ``None``.
        example_inputs: See `secateur.prepare`.

    Returns:
        The pruners, in the order of `configs`.

    Raises:
        SecateurError: See `secateur.prepare`. In that case, nothing is changed, unless an update at step 0 fails: the
            zeros of earlier pruners stay.

    Examples:
        >>> import torch
        >>> model = nn.Linear(4, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> once = {"target_sparsity": 0.5, "start_step": 0, "sparsity_decay_type": "one_shot"}
        >>> configs = [once | {"pattern": pattern} for pattern in ("1xchannel", "channelx1")]
        >>> [pruner.sparsity for pruner in prepare_together(model, configs, optimizer)]
        [0.5, 0.5]
        >>> (model.weight == 0).sum().item()
        12
    """
    groups = RankGroups.find(model)
    agree_on_run(groups, unwrap_model(model), configs)
    with groups.fail_together("secateur.prepare"):
        optimizers, wrappers = _unwrap_optimizers(optimizer)
    plans = [plan_torch(model, config, example_inputs=example_inputs) for config in configs]
    pruners = []
    for made, own in zip(plans, [None] * len(configs) if options is None else options, strict=True):
        rate = None if own is None else own.learning_rate
        announced = (ManualOptimizer(unwrap_model(model).parameters(), rate),)
        steppers = announced if optimizers is None else optimizers
        pruners.append(PytorchPruner(model, made, steppers, own, groups))
    PytorchPruner.start_together(pruners, wrappers)
    return pruners


def _unwrap_optimizers(
    optimizer: Optimizer | Iterable[Optimizer] | None,
) -> tuple[tuple[Optimizer, ...] | None, list[Any]]:
    """Return the optimizers that take the steps, and the wrappers around them."""
    if optimizer is None:
        return None, []
    optimizers = tuple(optimizer) if isinstance(optimizer, Iterable) else (optimizer,)
    chains = [unwrap_optimizer(optimizer) for optimizer in optimizers]
    return tuple(chain[-1] for chain in chains), [wrapper for chain in chains for wrapper in chain[:-1]]


def prepare_by_hand(model: nn.Module, config: ConfigLike) -> PytorchPruner:
    """Deprecated: `secateur.prepare` without an optimizer."""
    warn_deprecated("secateur.training.pytorch.prepare_by_hand(model, config)", "secateur.prepare(model, config)")
    return prepare(model, config)
