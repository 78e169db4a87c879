"""What happens around each step of a Keras optimizer, for all patterns of a model."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import keras

from secateur._array import Array, count_true
from secateur._wording import format_list
from secateur.errors import LayerError, StateError, UnsupportedModelError
from secateur.frameworks.keras import apply_mask, get_kernel, list_layers, read_array
from secateur.masking.run import build_report, refuse_nan, refuse_violations
from secateur.patterns import BasePattern
from secateur.results import PruningReport
from secateur.training.keras.run import AddVariable, KerasRun
from secateur.training.keras.state import Values, make_damage_error
from secateur.training.keras.weight import TrainedKernel, find_slots

__all__ = ["ACTIVE", "PruningStep"]

ACTIVE: WeakSet[PruningStep] = WeakSet()
"""Runs that have not ended, so that no two prune the same kernel."""


class PruningStep:
    """The runs of all patterns of a model, whose state is in variables of one optimizer.

    Args:
        patterns: The patterns, bound to layers or kernels.
        is_new: Whether to start from the current kernels, rather than from a state that is loaded later.

    Raises:
        ConfigError: A criterion ranks by gradients and the first update lies before the first gradient.
        ScoreError: A kernel has ``nan``.
    """

    def __init__(self, patterns: Sequence[BasePattern], *, is_new: bool = True) -> None:
        self.kernels = {name: TrainedKernel(name, pattern) for pattern in patterns for name in pattern.views}
        self.is_new = is_new
        refuse_nan(self.kernels)
        self.runs = [KerasRun(pattern, self.kernels, is_new=is_new) for pattern in patterns if pattern.views]

    def start(self, inner: keras.optimizers.Optimizer, add: AddVariable) -> None:
        """Create the variables; a new run sets the masks that apply before the first step.

        Args:
            inner: The built optimizer that changes the kernels.
            add: Creates a variable.

        Raises:
            UnsupportedModelError: Kernels are held by optimizers that accumulate over different numbers of batches.
        """
        for name, slot in find_slots(inner, {name: kernel.variable for name, kernel in self.kernels.items()}).items():
            self.kernels[name].slot = slot
        accumulated = {kernel.slot.accumulated for kernel in self.kernels.values() if kernel.slot is not None}
        if len(accumulated) > 1:
            raise UnsupportedModelError(
                f"The optimizers of the pruned layers must accumulate gradients over the same number of batches, found "
                f"{sorted(accumulated)}. Set one gradient_accumulation_steps for all."
            )
        self.accumulated = accumulated.pop()
        self._updated = add((), dtype="int32", name="updated_step")
        for run in self.runs:
            run.add_variables(add)
        if self.is_new:
            self.restart()

    def restart(self) -> None:
        """Start from the current kernels.

        Raises:
            ConfigError: They are sparser than the target.
            ScoreError: A kernel has ``nan``.
        """
        refuse_nan(self.kernels)
        for run in self.runs:
            run.restart()
        self._updated.assign(0)
        self.apply_masks()

    # Inside the compiled step.

    def before_step(self, step: Any, gradients: Mapping[int, Any]) -> tuple[Any, dict[str, Any]]:
        """Accumulate scores from the arguments of `apply`.

        Args:
            step: Number of the coming step, from 1.
            gradients: Identity of a kernel's variable → its gradient, scaled and not accumulated.

        Returns:
            Whether the call makes a step, and the learning rate of each kernel that it changes. A call without any
            pruned kernel, as of the other half of an adversarial pair, makes none.
        """
        given = {name: gradients.get(id(kernel.variable)) for name, kernel in self.kernels.items()}
        slots = {name: kernel.slot for name, kernel in self.kernels.items() if given[name] is not None and kernel.slot}
        if not slots:
            return False, {}
        made = next(iter(slots.values())).makes_step()
        real = {name: slot.gradient(given[name]) for name, slot in slots.items()}
        for run in self.runs:
            run.accumulate_scores(step, {name: real[name] for name in run.weights if name in real}, made)
        return made, {name: slot.read_learning_rate() for name, slot in slots.items()} if self._shrinks else {}

    def after_step(self, step: Any, made: Any, rates: Mapping[str, Any]) -> None:
        """Regularize what the optimizer changed, and set pruned weights to zero."""
        for run in self.runs:
            run.shrink(step, rates, made)
        self.apply_masks()

    def apply_masks(self) -> None:
        """Set to zero what the masks prune."""
        for kernel in self.kernels.values():
            kernel.apply_mask()

    @property
    def is_averaged(self) -> bool:
        """Whether an optimizer keeps a moving average of a kernel."""
        return any(kernel.slot is not None and kernel.slot.average() is not None for kernel in self.kernels.values())

    @property
    def _shrinks(self) -> bool:
        return any(run.config.reg_type is not None for run in self.runs)

    # On the host.

    def refuse_shared(self) -> None:
        """Raise `StateError` if a run that has not ended prunes one of the kernels."""
        if self._find_shared():
            gc.collect()  # the run of an optimizer that is not referenced any more has ended
        if shared := self._find_shared():
            raise StateError(
                f"Another PruningOptimizer prunes {format_list(map(repr, shared))} already. End that run with "
                f"secateur.keras.finalize(model), or drop all references to that optimizer."
            )

    def _find_shared(self) -> list[str]:
        pruned = {id(kernel.variable) for other in ACTIVE for kernel in other.kernels.values()}
        return [name for name, kernel in self.kernels.items() if id(kernel.variable) in pruned]

    def apply_masks_to(self, model: keras.Model) -> None:
        """Set pruned weights to zero in a copy of the model.

        Raises:
            LayerError: A pruned layer is missing there or has another shape; nothing is changed then.
        """
        layers, targets = list_layers(model), []
        for name, kernel in self.kernels.items():
            if name not in layers:
                raise LayerError(f"layer {name!r} was pruned, and {model.name!r} has no such layer.")
            variable = get_kernel(layers[name])
            if variable.shape != kernel.variable.shape:
                shape, expected = tuple(variable.shape), tuple(kernel.variable.shape)
                raise LayerError(f"layer {name!r} has shape {shape}, the mask {expected}.")
            targets.append((variable, kernel.mask))
        for variable, mask in targets:
            if mask is not None:
                apply_mask(variable, mask)

    @property
    def next_update(self) -> int | None:
        """The step after which masks change next; ``None``: they are final."""
        updated = int(read_array(self._updated))
        changes = [run.updater.next_change(updated) for run in self.runs]
        return min((change for change in changes if change is not None), default=None)

    def update(self, step: int) -> bool:
        """Make every update that is due after `step` steps; return whether there was one.

        Raises:
            ScoreError: A score is ``nan``; masks and weights are then as they were.
        """
        changed = False
        while (due := self.next_update) is not None and due <= step:
            self._read()
            # All or none: an error in one run must not change the masks of the others.
            changes = [run.masks_after(due) for run in self.runs]
            try:
                self._commit(changes, due)
            except BaseException:  # Ctrl-C: start over, so that the update is complete
                self._commit(changes, due)
                raise
            changed = True
        return changed

    def _commit(self, changes: Sequence[Mapping[str, Array]], step: int) -> None:
        """Set the masks of each run after `step` steps."""
        for run, masks in zip(self.runs, changes, strict=True):
            run.set_masks(masks)
            run.write()
        self._updated.assign(step)
        self.apply_masks()

    def masks(self) -> dict[str, Array]:
        """Layer → booleans in the kernel's shape, ``True`` = kept, in memory of their own."""
        return {name: kernel.mask.copy() for name, kernel in self.kernels.items() if kernel.mask is not None}

    def sparsity(self) -> float:
        """Share of weights that the masks prune."""
        masks = [kernel.mask for kernel in self.kernels.values() if kernel.mask is not None]
        weights: int = sum(math.prod(mask.shape) for mask in masks)
        return (weights - sum(map(count_true, masks))) / weights

    def report(self, step: int, dense: Mapping[str, str], model_weights: int) -> PruningReport:
        """What is pruned after `step` steps."""
        return build_report(self.runs, dense, step, model_weights)

    def verify(self, step: int) -> None:
        """Check every mask against its pattern and every pruned weight against zero.

        Raises:
            StateError: An update was due and not made, or masks and weights are not what they should be.
        """
        if (due := self.next_update) is not None and due <= step:
            raise StateError(
                f"Masks were to change after step {due}, and {step} steps have been made without it. Pass "
                f"secateur.keras.PruningCallback() as a callback to fit, or call update_masks() after each step."
            )
        self._read()
        refuse_violations({name: reason for run in self.runs for name, reason in run.violations().items()})

    def describe(self) -> list[dict[str, Any]]:
        """Describe the configuration and layers of each run, to recognize its saved states."""
        return [run.describe() for run in self.runs]

    def refuse_other_model(self, model: keras.Model) -> None:
        """Raise `StateError` if `model` does not have the kernels that are pruned."""
        mine = {id(variable) for variable in model.weights}
        if foreign := [name for name, kernel in self.kernels.items() if id(kernel.variable) not in mine]:
            raise StateError(
                f"The PruningOptimizer was made for another model: the kernels of {format_list(map(repr, foreign))} "
                f"are not those of {model.name!r}. Make one for this model."
            )

    def check_values(self, values: Values, step: int) -> None:
        """Raise `StateError` if this run cannot reach a saved state.

        Args:
            values: What the variables are to hold.
            step: Steps made when it was saved.
        """
        updated = int(values[id(self._updated)])
        if not 0 <= updated <= step:
            raise make_damage_error(f"masks must have followed 0 to {step} steps, found {updated}")
        for run in self.runs:
            if (problem := run.find_problem(values, updated)) is not None:
                raise make_damage_error(problem)

    def write_frozen(self) -> None:
        """Write to the variables which layers keep their masks."""
        for run in self.runs:
            run.write_frozen()

    def read_frozen(self) -> None:
        """Read from the variables which layers keep their masks."""
        for run in self.runs:
            run.pattern.keep_mask_layers.clear()
            run.read_frozen()

    def _read(self) -> None:
        updated = int(read_array(self._updated))
        for run in self.runs:
            run.read(updated)
