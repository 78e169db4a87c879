"""Detect weights that change outside the steps that a pruner observes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch

from secateur._wording import format_list
from secateur.distributed.pytorch.shards import is_sharded
from secateur.errors import StateError
from secateur.training.checks import ALREADY_SPARSE
from secateur.training.pytorch.weight import ManualOptimizer, TrainedParameter

__all__ = ["ChangeWatch", "StepWatch"]

logger = logging.getLogger(__name__)

SAMPLE = 1024
"""Number of values by which a change of a weight is noticed."""

MIN_CHANGES = 2
"""Changes without a step before a warning. One is normal if weights are perturbed between two backward passes."""


class StepWatch:
    """Log a warning if weights change from one backward pass to the next before a first step has been seen.

    Args:
        weights: The weights to prune. One of each optimizer is watched, until `stop` is called.
    """

    def __init__(self, weights: Iterable[TrainedParameter]) -> None:
        watched = {id(weight.slot.optimizer): weight for weight in weights if weight.slot.optimizer is not None}
        self._samples: dict[int, torch.Tensor] = {}
        self._changes = 0
        # Only names, because the hooks must not keep an optimizer, and with it the pruner, alive.
        optimizers = [weight.slot.optimizer for weight in watched.values()]
        self._names = dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers)
        self._is_manual = any(isinstance(optimizer, ManualOptimizer) for optimizer in optimizers)
        self._hooks = [
            weight.parameter.register_post_accumulate_grad_hook(self._compare)
            for weight in watched.values()
            if weight.parameter.requires_grad and not is_sharded(weight.parameter)  # its gradients are set by others
        ]

    def stop(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._samples = [], {}

    def _compare(self, parameter: torch.Tensor) -> None:
        sample = parameter.detach().flatten()[:SAMPLE].clone()
        before = self._samples.get(id(parameter), sample)
        self._samples[id(parameter)] = sample
        self._changes += not torch.equal(before.to(sample), sample)
        if self._changes >= MIN_CHANGES:
            self.stop()
            logger.warning("%s", self._describe())

    def _describe(self) -> str:
        what = "The weights change, but no step of the optimizer has been seen, so nothing is pruned."
        if self._is_manual:
            return f"{what} Call before_step and after_step of the pruner around each step of the optimizer."
        return (
            f"{what} secateur.prepare got {format_list(self._names)}; pass the optimizer whose step() is called. If "
            f"there is none, call secateur.prepare without an optimizer, and before_step and after_step around each "
            f"step."
        )


class ChangeWatch:
    """Detect that weights were overwritten between steps, as by loading a checkpoint.

    Args:
        weights: Layer → its weight.
    """

    def __init__(self, weights: Mapping[str, TrainedParameter]) -> None:
        self._has_warned = False
        # Numbers of zeros before the first step.
        self._zeros = {name: weight.count_free_zeros() for name, weight in weights.items()}
        self._marks: dict[str, tuple[int, int]] = {}
        self.accept(weights)

    def accept(self, weights: Mapping[str, TrainedParameter]) -> None:
        """Accept the current values of weights."""
        self._marks |= {name: _read_mark(weight.stored) for name, weight in weights.items()}

    def accept_zeros(self) -> None:
        """Accept any zeros, because their masks were loaded."""
        self._zeros = {}

    def check(self, weights: Mapping[str, TrainedParameter]) -> None:
        """Set pruned weights that were overwritten since `accept` to zero, with a warning.

        Raises:
            StateError: Before the first step of these weights, many became zero, and the run does not keep them.
        """
        changed = {name: weight for name, weight in weights.items() if _read_mark(weight.stored) != self._marks[name]}
        for name, weight in changed.items():
            if name in self._zeros:
                _refuse_new_zeros(name, weight, self._zeros[name])
        for name in weights:
            self._zeros.pop(name, None)
        revived = [name for name, weight in changed.items() if weight.has_revived()]
        for name in revived:
            changed[name].apply_mask()
        if revived and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Pruned weights of %s were changed between two steps, such as by loading a checkpoint, and are set to "
                "zero again. Load a checkpoint before secateur.prepare, or together with the state of its pruner.",
                format_list(map(repr, revived)),
            )


def _refuse_new_zeros(name: str, weight: TrainedParameter, before: int) -> None:
    share = (weight.count_free_zeros() - before) / weight.parameter.numel()
    if share >= ALREADY_SPARSE:
        raise StateError(
            f"layer {name!r}: {share:.1%} of its weights have become zero since secateur.prepare, such as by loading a "
            f"pruned checkpoint, and this run would not keep them. Load the checkpoint before secateur.prepare, or "
            f"load the state of its pruner with load_state_dict."
        )


def _read_mark(stored: torch.Tensor) -> tuple[int, int]:
    """Return numbers that differ after a tensor was written in place, or got other memory."""
    return stored._version, stored.data_ptr()
