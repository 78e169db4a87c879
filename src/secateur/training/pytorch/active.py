"""The pruners whose run has not ended. No two of them may prune the same weight."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from secateur.masking.active import ACTIVE, list_active

__all__ = ["add_active", "remove_active"]


class StepFollower(Protocol):
    """A pruner that follows the steps of optimizers that were not passed to it."""

    def follow_other_step(self, optimizer: Optimizer) -> None:
        """Act after a step of any optimizer of the process."""


HOOKS: list[Any] = []
"""While there are active pruners, the hook that every optimizer calls after a step."""


def add_active(pruner: StepFollower) -> None:
    """Add a pruner, and call it after the steps of all optimizers."""
    ACTIVE.add(pruner)
    if not HOOKS:
        HOOKS.append(register_optimizer_step_post_hook(torch.compiler.disable(_follow_step)))


def remove_active(pruner: StepFollower) -> None:
    """Remove a pruner whose run has ended."""
    ACTIVE.discard(pruner)
    if not ACTIVE and HOOKS:
        HOOKS.pop().remove()


def _follow_step(optimizer: Optimizer, *_: Any) -> None:
    for pruner in list_active():
        pruner.follow_other_step(optimizer)
