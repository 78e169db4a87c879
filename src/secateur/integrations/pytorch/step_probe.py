"""Check that the steps of an optimizer reach its hooks."""

from __future__ import annotations

from typing import Any

from secateur.errors import UnsupportedModelError
from secateur.training.pytorch.wrappers import unwrap_optimizer

__all__ = ["StepProbe"]


class StepProbe:
    """Notices whether an optimizer calls the hooks of its step, by which a pruner follows it.

    Args:
        optimizer: The optimizer, or a wrapper of it.

    Examples:
        >>> import torch
        >>> probe = StepProbe(torch.optim.SGD([torch.ones(1)]))
        >>> probe.check()
        Traceback (most recent call last):
        secateur.errors.UnsupportedModelError: The step of the optimizer SGD must call the hooks of
        torch.optim.Optimizer, and has not, so its weights would not be pruned. ...
    """

    def __init__(self, optimizer: Any) -> None:
        inner = unwrap_optimizer(optimizer)[-1]
        self._name = type(inner).__name__
        self._is_seen = False
        self._hook = inner.register_step_pre_hook(self._see)

    def check(self) -> None:
        """Remove the hook, and raise an error if no step has called it.

        Raises:
            UnsupportedModelError: No step has called the hook.
        """
        self._hook.remove()
        if not self._is_seen:
            raise UnsupportedModelError(
                f"The step of the optimizer {self._name} must call the hooks of torch.optim.Optimizer, and has not, so "
                f"its weights would not be pruned. Train with an optimizer of torch, such as AdamW."
            )

    def _see(self, *_: Any) -> None:
        self._is_seen = True
