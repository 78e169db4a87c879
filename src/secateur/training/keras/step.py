"""Prune around each step of a Keras optimizer, with all patterns of a model."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import keras

from secateur._array import Array, count_true
from secateur._wording import format_list
from secateur.errors import LayerError, StateError, UnsupportedModelError
from secateur.frameworks.keras import apply_mask, find_kernel, read_array
from secateur.masking.run import build_report, refuse_nan, refuse_violations
from secateur.patterns import BasePattern
from secateur.results import PruningReport
from secateur.training.keras.run import AddVariable, KerasRun
from secateur.training.keras.state import Values, make_damage_error
from secateur.training.keras.weight import TrainedKernel, find_slots

__all__ = ["ACTIVE", "PruningStep"]

logger = logging.getLogger(__name__)

ACTIVE: WeakSet[PruningStep] = WeakSet()
"""Runs that have not ended. No two of them may prune the same kernel."""


class PruningStep:
    """The runs of all patterns of a model, whose state is in variables of one optimizer.

    Args:
        patterns: The patterns with their layers or kernels.
        is_new: Whether to start from the current kernels, rather than from a state that is loaded later.

    Raises:
        ConfigError: A criterion ranks by gradients, but an update before the first gradient prunes.
        ScoreError: A kernel contains ``nan``.
    """

    def __init__(self, patterns: Sequence[BasePattern], *, is_new: bool = True) -> None:
        self.kernels = {name: TrainedKernel(name, pattern) for pattern in patterns for name in pattern.views}
        self.is_new = is_new
        refuse_nan(self.kernels)
        self.runs = [KerasRun(pattern, self.kernels, is_new=is_new) for pattern in patterns if pattern.views]

    def start(self, inner: keras.optimizers.Optimizer, add: AddVariable) -> None:
        """Create the variables. A new run also sets the masks that apply before the first step.

        Args:
            inner: The built optimizer that trains the kernels.
            add: Creates a variable.

        Raises:
            UnsupportedModelError: The optimizers of the kernels accumulate over different numbers of batches.
        """
        for name, slot in find_slots(inner, {name: kernel.variable for name, kernel in self.kernels.items()}).items():
            self.kernels[name].slot = slot
        accumulated = {kernel.slot.accumulated for kernel in self.kernels.values() if kernel.slot is not None}
        if len(accumulated) > 1:
            raise UnsupportedModelError(
                f"The optimizers of the pruned layers must accumulate gradients over the same number of batches, found "
                f"{sorted(accumulated)}. Set the same gradient_accumulation_steps for all of them."
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
            ScoreError: A kernel contains ``nan``.
        """
        refuse_nan(self.kernels)
        for run in self.runs:
            run.restart()
        self._updated.assign(0)
        self.apply_masks()

    # In the compiled step.

    def before_step(self, step: Any, gradients: Mapping[int, Any]) -> tuple[Any, dict[str, Any]]:
        """Accumulate scores from the arguments of `apply`.

        Args:
            step: Number of the next step, from 1.
            gradients: Identity of the variable of a kernel → its gradient, scaled and not accumulated.

        Returns:
            Whether the call takes a step, and the learning rate of each kernel that it changes. A call without pruned
            kernels, such as that of the other model in adversarial training, takes no step.
        """
        given = {name: gradients.get(id(kernel.variable)) for name, kernel in self.kernels.items()}
        slots = {name: kernel.slot for name, kernel in self.kernels.items() if given[name] is not None and kernel.slot}
        if not slots:
            return False, {}
        made = next(iter(slots.values())).makes_step()
        real = {name: slot.compute_gradient(given[name]) for name, slot in slots.items()}
        for run in self.runs:
            run.accumulate_scores(step, {name: real[name] for name in run.weights if name in real}, made)
        return made, {name: slot.read_learning_rate() for name, slot in slots.items()} if self._shrinks else {}

    def reveal(self, step: Any, variables: Sequence[keras.Variable], gradients: Sequence[Any]) -> Sequence[Any]:
        """Write the latent values of pruned weights to the kernels for a step, and return its gradients with decay.

        Args:
            step: Number of the next step, from 1.
            variables: The variables that the step changes.
            gradients: Their gradients.
        """
        latent = {
            id(kernel.variable): (run, kernel)
            for run in self.runs
            for kernel in run.weights.values()
            if kernel.latent is not None
        }
        if not latent:
            return gradients
        for kernel in self.kernels.values():
            kernel.is_revealed = False  # a step whose tracing failed may have left it set
        pairs = zip(variables, gradients, strict=True)
        return [
            gradient
            if gradient is None or id(variable) not in latent
            else latent[id(variable)][1].reveal(gradient, *latent[id(variable)][0].compute_latent_decay(step))
            for variable, gradient in pairs
        ]

    def after_step(self, step: Any, made: Any, rates: Mapping[str, Any]) -> None:
        """Regularize the kernels that the optimizer changed, and set pruned weights to zero."""
        for run in self.runs:
            run.shrink(step, rates, made)
        for kernel in self.kernels.values():
            kernel.hide()
        self.apply_masks()

    def apply_masks(self) -> None:
        """Set pruned weights to zero."""
        for kernel in self.kernels.values():
            kernel.apply_mask()

    def restore_zeros(self) -> None:
        """Set pruned weights that other code has changed between two runs of ``fit`` to zero, with a warning."""
        masks = {name: kernel.mask for name, kernel in self.kernels.items()}
        revived = [
            name
            for name, mask in masks.items()
            if mask is not None and count_true(self.kernels[name].stored[~mask] != 0)
        ]
        if revived:
            self.apply_masks()
            logger.warning(
                "Pruned weights of %s were changed since the last step, such as by loading weights, and are set to "
                "zero again. Load weights before the PruningOptimizer is created, or with its state.",
                format_list(map(repr, revived)),
            )

    @property
    def is_averaged(self) -> bool:
        """Whether an optimizer keeps a moving average of a kernel."""
        return any(
            kernel.slot is not None and kernel.slot.get_average() is not None for kernel in self.kernels.values()
        )

    @property
    def _shrinks(self) -> bool:
        return any(run.config.reg_type is not None for run in self.runs)

    # On the host.

    def refuse_shared(self) -> None:
        """Raise `StateError` if a run that has not ended prunes one of the kernels."""
        if self._find_shared():
            gc.collect()  # runs of optimizers without references have ended
        if shared := self._find_shared():
            raise StateError(
                f"Another PruningOptimizer already prunes {format_list(map(repr, shared))}. End that run with "
                f"secateur.keras.finalize(model), or drop all references to that optimizer."
            )

    def _find_shared(self) -> list[str]:
        pruned = {id(kernel.variable) for other in ACTIVE for kernel in other.kernels.values()}
        return [name for name, kernel in self.kernels.items() if id(kernel.variable) in pruned]

    def apply_masks_to(self, model: keras.Model) -> None:
        """Set pruned weights to zero in a copy of the model.

        Raises:
            LayerError: A pruned layer is missing there or has a different shape. In this case nothing is changed.
        """
        targets = []
        for name, kernel in self.kernels.items():
            variable = find_kernel(model, name)
            if variable is None:
                raise LayerError(f"layer {name!r} was pruned, but {model.name!r} does not have it.")
            if variable.shape != kernel.variable.shape:
                shape, expected = tuple(variable.shape), tuple(kernel.variable.shape)
                raise LayerError(f"layer {name!r} has shape {shape}, but its mask has {expected}.")
            targets.append((variable, kernel.mask))
        for variable, mask in targets:
            if mask is not None:
                apply_mask(variable, mask)

    @property
    def next_update(self) -> int | None:
        """The step after which masks change next, or ``None`` if they are final."""
        updated = int(read_array(self._updated))
        changes = [run.updater.next_change(updated) for run in self.runs]
        return min((change for change in changes if change is not None), default=None)

    def update(self, step: int) -> bool:
        """Make every update that is due after `step` steps, and return whether there was one.

        Raises:
            ScoreError: A score is ``nan``. In this case masks and weights are unchanged.
        """
        changed = False
        while (due := self.next_update) is not None and due <= step:
            self._read()
            # All or none: an error in one run must not change the masks of the others.
            changes = [run.masks_after(due) for run in self.runs]
            try:
                self._commit(changes, due, step)
            except BaseException:  # Ctrl-C: start over, so that the update is complete
                self._commit(changes, due, step)
                raise
            changed = True
        return changed

    def _commit(self, changes: Sequence[Mapping[str, Array]], due: int, step: int) -> None:
        """Set the masks of each run for the update that was due after `due` steps, when `step` steps are made."""
        for run, masks in zip(self.runs, changes, strict=True):
            run.set_masks(masks)
            run.write()
        self._updated.assign(due)
        self.apply_masks()
        if (following := self.next_update) is None or following > step:  # otherwise it reads the same gradients
            for run in self.runs:
                run.clear_gradient_sums()

    def masks(self) -> dict[str, Array]:
        """Return copies of the masks: layer → booleans in the shape of the kernel, ``True`` = kept."""
        return {name: kernel.mask.copy() for name, kernel in self.kernels.items() if kernel.mask is not None}

    def sparsity(self) -> float:
        """Return the share of pruned weights."""
        masks = [kernel.mask for kernel in self.kernels.values() if kernel.mask is not None]
        weights: int = sum(math.prod(mask.shape) for mask in masks)
        return (weights - sum(map(count_true, masks))) / weights

    def report(self, step: int, dense: Mapping[str, str], model_weights: int) -> PruningReport:
        """Return a report on what is pruned after `step` steps."""
        return build_report(self.runs, dense, step, model_weights)

    def verify(self, step: int) -> None:
        """Verify that masks follow their patterns and that pruned weights are zero.

        Raises:
            StateError: A due update was missed, or masks or weights are invalid.
        """
        if (due := self.next_update) is not None and due <= step:
            raise StateError(
                f"Masks were to change after step {due}, and {step} steps have been made without it. Pass "
                f"secateur.keras.PruningCallback() as a callback to fit, or call update_masks() after each step."
            )
        self._read()
        refuse_violations({name: reason for run in self.runs for name, reason in run.violations().items()})

    def describe(self) -> list[dict[str, Any]]:
        """Describe the configuration and layers of each run, so that its saved states can be recognized."""
        return [run.describe() for run in self.runs]

    def refuse_other_model(self, model: keras.Model) -> None:
        """Raise `StateError` if `model` does not have the kernels that are pruned."""
        mine = {id(variable) for variable in model.weights}
        if foreign := [name for name, kernel in self.kernels.items() if id(kernel.variable) not in mine]:
            raise StateError(
                f"The PruningOptimizer was made for another model: the kernels of {format_list(map(repr, foreign))} "
                f"are not in {model.name!r}. Create a PruningOptimizer for this model."
            )

    def check_values(self, values: Values, step: int) -> None:
        """Raise `StateError` if this run cannot reach a saved state.

        Args:
            values: The saved values of the variables.
            step: Number of steps taken when it was saved.
        """
        updated = int(values[id(self._updated)])
        if not 0 <= updated <= step:
            raise make_damage_error(f"masks must have followed 0 to {step} steps, found {updated}")
        for run in self.runs:
            if (problem := run.find_problem(values, updated)) is not None:
                raise make_damage_error(problem)

    def write_frozen(self) -> None:
        """Write which layers keep their masks to the variables."""
        for run in self.runs:
            run.write_frozen()

    def read_frozen(self) -> None:
        """Read which layers keep their masks from the variables."""
        for run in self.runs:
            run.pattern.keep_mask_layers.clear()
            run.read_frozen()

    def _read(self) -> None:
        updated = int(read_array(self._updated))
        for run in self.runs:
            run.read(updated)
