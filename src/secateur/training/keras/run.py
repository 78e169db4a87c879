"""A run whose state is in variables of a Keras optimizer, so that a compiled step can change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from secateur._array import Array
from secateur.errors import LayerError, ScoreError
from secateur.frameworks.keras import get_tensor, wrap_for_assign
from secateur.masking.regrowth import make_updater
from secateur.masking.run import Run
from secateur.masking.updater import REACHED
from secateur.patterns import BasePattern
from secateur.training.group_lasso import compute_shrinkage
from secateur.training.keras.graph_array import as_array, as_tensor
from secateur.training.keras.state import Values
from secateur.training.keras.weight import TrainedKernel
from secateur.training.resume import SavedProgress, find_problem

__all__ = ["AddVariable", "KerasRun"]


FROZEN_BEFORE = "its mask was frozen when this state was saved"
"""Reason why a mask is no longer updated, if the reason was not saved."""


def cond(predicate: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Call ``ops.cond``, or branch in Python with torch, where ``ops.cond`` makes torch.compile recompile each step."""
    if keras.backend.backend() == "torch":
        return yes() if predicate else no()
    return ops.cond(predicate, yes, no)


class AddVariable(Protocol):
    """Creates a variable of an optimizer."""

    def __call__(
        self, shape: tuple[int, ...], initializer: str = "zeros", *, dtype: str, layout: Any = None, name: str
    ) -> keras.Variable:
        """Create a variable that is saved and restored with the optimizer."""


class KerasRun(Run[TrainedKernel]):
    """The scores, masks and progress of the layers of one pattern, as variables.

    `accumulate_scores` and `shrink`, which run at every step, are traced and compiled. New masks are selected on the
    host, by the code for all frameworks: `read` reads its state from the variables, and `write` writes it back. So
    restoring the variables restores the run.

    Args:
        pattern: The pattern with its layers.
        kernels: Layer → its kernel.
        is_new: Whether to start from the current kernels, rather than from a state that is loaded later.

    Raises:
        ConfigError: The criterion ranks by gradients but an update before the first gradient prunes.
    """

    def __init__(self, pattern: BasePattern, kernels: Mapping[str, TrainedKernel], *, is_new: bool = True) -> None:
        super().__init__(pattern, kernels, is_new=is_new)
        self._keep: dict[str, keras.Variable] = {}
        self._scheduled: dict[str, keras.Variable] = {}
        self._totals: dict[str, keras.Variable] = {}

    def add_variables(self, add: AddVariable) -> None:
        """Create the variables."""
        for name, kernel in self.weights.items():
            layout = getattr(kernel.variable, "_layout", None)
            shape = tuple(kernel.variable.shape)
            kernel.mask_variable = add(shape, "ones", dtype="bool", layout=layout, name=f"{name}_mask")
            if self.config.kind == "sr_ste":
                kernel.latent = add(shape, dtype=kernel.variable.dtype, layout=layout, name=f"{name}_latent")
            if self._grows_by_gradient:
                kernel.gradient_sum = add(shape, dtype=self.config.score_dtype, layout=layout, name=f"{name}_growth")
        first = next(iter(self.weights))  # no two runs share a layer, so the names of their variables differ
        self._initial = add((8,), dtype="uint8", name=f"{first}_initial_sparsity")
        self._frozen = add((len(self.pattern.units),), dtype="bool", name=f"{first}_frozen")
        if self.updater.is_locked:
            return
        counts = {name: (units.count,) for name, units in self.pattern.units.items()}
        self._keep = {
            name: add(shape, "ones", dtype="bool", name=f"{name}_keep")
            for name, shape in counts.items()
            if name not in self._units_in_masks
        }
        if self.config.kind == "progressive":
            self._scheduled = {
                name: add(shape, "ones", dtype="bool", name=f"{name}_keep_next") for name, shape in counts.items()
            }
        if self.scores.is_accumulated:
            self._totals = {
                key: add(shape, dtype=self.config.score_dtype, name=f"{key}_scores")
                for key, shape in self.scores.shapes.items()
            }

    def restart(self) -> None:
        """Start from the current kernels.

        Raises:
            ConfigError: They are sparser than the target.
            ScoreError: A score is ``nan``.
        """
        self.updater = make_updater(self.pattern, self.growth)
        self.scores.totals = {}
        for kernel in self.weights.values():
            kernel.mask = np.ones(tuple(kernel.variable.shape), dtype=bool)
            kernel.clear_gradient_sum()
        for variable in (*self._keep.values(), *self._scheduled.values()):
            variable.assign(np.ones(tuple(variable.shape), dtype=bool))
        for total in self._totals.values():
            total.assign(np.zeros(tuple(total.shape)))
        self.start()
        self.write()

    # In the compiled step.

    def accumulate_scores(self, step: Any, gradients: Mapping[str, Any], made: Any) -> None:
        """Accumulate scores from the gradients of the next step.

        Args:
            step: Number of that step, from 1.
            gradients: Layer → the gradient, in the shape of the kernel.
            made: Whether the call takes a step, rather than only accumulating gradients.

        Raises:
            ScoreError: The criterion ranks by gradients, but a layer has none.
        """
        missing = next((name for name in self.weights if gradients.get(name) is None), None)
        if self._totals and self.scores.needs_gradient and missing is not None:
            raise ScoreError(
                f"layer {missing!r}: {self.config.criterion!r} ranks by gradients, and none reaches this layer. "
                f"Exclude it, or rank by 'magnitude'."
            )
        if self._totals:
            self._add_scores(gradients, ops.logical_and(self._should_accumulate(step), made))
        if self._grows_by_gradient:
            self._sum_gradients(gradients, ops.logical_and(self.updater.schedule.sums_gradients(step), made))

    def _sum_gradients(self, gradients: Mapping[str, Any], counts: Any) -> None:
        for name, kernel in self.weights.items():
            if gradients.get(name) is not None:
                kernel.add_gradient(gradients[name], counts)
            elif kernel.variable.trainable and name not in self.pattern.keep_mask_layers:
                raise ScoreError(
                    f"layer {name!r}: kind='rigl' regrows by gradients, but none reaches this layer. Exclude it, or "
                    f"use kind='set'."
                )

    @property
    def _grows_by_gradient(self) -> bool:
        return self.growth is not None and self.growth.gradients is not None

    def _add_scores(self, gradients: Mapping[str, Any], counts: Any) -> None:
        variables = list(self._totals.values())
        fresh = cond(
            counts,
            lambda: self._compute_totals(gradients),
            lambda: [get_tensor(total) for total in variables],
        )
        for variable, value in zip(variables, fresh, strict=True):
            variable.assign(value)

    def shrink(self, step: Any, rates: Mapping[str, Any], made: Any) -> None:
        """Apply group lasso after step number `step`, to the kernels that it changed with these learning rates."""
        if self.config.reg_type is None or self.config.reg_coeff == 0:
            return
        active = ops.logical_and(step <= self.last_step, made)
        for units in self.pattern.units.values():
            kernels = {layer: self.weights[layer] for layer in units.parts}
            if not kernels.keys() <= rates.keys():
                continue
            strength = as_array(self.config.reg_coeff * rates[next(iter(kernels))])
            factors = compute_shrinkage(
                units, {layer: kernel.trace_canonical() for layer, kernel in kernels.items()}, strength
            )
            for layer, kernel in kernels.items():
                kernel.shrink(as_array(ops.where(active, as_tensor(factors[layer]), 1.0)))

    def compute_latent_decay(self, step: Any) -> tuple[Any, Any]:
        """Return whether pruned weights train in step number `step`, and the decay of their latent values."""
        is_active = step <= self.last_step
        return is_active, ops.where(is_active, self.config.sr_ste_decay, 0.0)

    def _compute_totals(self, gradients: Mapping[str, Any]) -> list[Any]:
        found, totals, scores = dict[str, Any](), self._totals, self.scores
        for name, units in self.pattern.units.items():
            by_weight = {
                layer: self.weights[layer].trace_scores(scores.criteria[layer], gradients.get(layer))
                for layer in units.parts
            }
            of_units = scores.score_step(name, by_weight)
            found |= {key: scores.accumulate(as_array(totals[key]), score) for key, score in of_units.items()}
        return [as_tensor(found[key]) for key in totals]

    def _should_accumulate(self, step: Any) -> Any:
        """Whether the scores of step number `step` will be read."""
        if self.scores.decay > 0 or self.scores.sees_every_step:
            return step <= self.last_step
        return self._is_due(step)

    def _is_due(self, step: Any) -> Any:
        """Whether masks are updated after step number `step`; see `UpdateSchedule.is_update`."""
        start, end = self.config.start_step, self.last_step
        on_time = ops.logical_or(ops.equal((step - start) % self.config.pruning_frequency, 0), ops.equal(step, end))
        return ops.logical_and(ops.logical_and(step >= start, step <= end), on_time)

    # On the host.

    def read(self, updated: int) -> None:
        """Read the state from the variables.

        Args:
            updated: Step up to which masks are updated.
        """
        self.read_frozen()
        if self.updater.is_locked:
            return
        initial = float(np.ascontiguousarray(self.pattern.framework.to_array(self._initial)).view(np.float64)[0])
        last = self.updater.schedule.last_update(updated)
        keep = self._arrays(self._keep)
        for name, layer in self._units_in_masks.items():
            keep[name] = self.pattern.framework.to_array(self.weights[layer].mask).reshape((-1,))
        self.updater.restore(
            {
                "keep": keep,
                "condemned_keep": self._arrays(self._scheduled) if self._has_scheduled_units(updated) else None,
                "asked": initial,
                "initial": initial,
            }
        )
        if last is not None:
            self.updater.requested = self.updater.schedule.sparsity(last)
        self.scores.totals = self._arrays(self._totals)

    def find_problem(self, values: Values, updated: int) -> str | None:
        """Find a contradiction in a saved state, or return ``None`` if there is none.

        Args:
            values: The values of the variables.
            updated: Step up to which masks are updated.
        """
        initial = float(np.ascontiguousarray(values[id(self._initial)]).view(np.float64)[0])
        if not 0 <= initial <= 1:
            return f"the initial sparsity must lie in [0, 1], found {initial}"
        sums = {name: kernel.gradient_sum for name, kernel in self.weights.items() if kernel.gradient_sum is not None}
        for name, total in (*self._totals.items(), *sums.items()):
            if np.isnan(values[id(total)].astype(np.float32)).any():
                return f"scores of {name!r} must be numbers, found nan"
        flags = zip(self.pattern.units, values[id(self._frozen)], strict=True)
        frozen = [name for name, is_frozen in flags if is_frozen]
        masks = {name: values[id(kernel.mask_variable)] for name, kernel in self.weights.items()}
        keep, scheduled = self._read_units(values, masks, updated)
        if keep is not None and self.updater.schedule.last_update(updated) is None and not self.config.keep_zeros:
            if not all(flags.all() for flags in (*keep.values(), *masks.values())):
                return "masks prune before the first update"
            keep, masks = None, {}
        return find_problem(self.updater, SavedProgress(updated, masks, keep, scheduled, None, initial, frozen))

    def _read_units(
        self, values: Values, masks: Mapping[str, Array], updated: int
    ) -> tuple[dict[str, Array] | None, dict[str, Array] | None]:
        """Read which units are kept in a saved state, and which are at the next update of a progressive run."""
        if self.updater.is_locked:
            return None, None
        keep = {name: values[id(variable)] for name, variable in self._keep.items()}
        keep |= {name: masks[layer].reshape((-1,)) for name, layer in self._units_in_masks.items()}
        scheduled = {name: values[id(variable)] for name, variable in self._scheduled.items()}
        return keep, scheduled if self._has_scheduled_units(updated) else None

    def _has_scheduled_units(self, updated: int) -> bool:
        is_between = self.updater.schedule.last_update(updated) is not None and updated < self.last_step
        return bool(self._scheduled) and is_between

    def masks_after(self, step: int) -> dict[str, Array]:
        """See `Run.masks_after`; scores are computed once, though they are read several times.

        Raises:
            LayerError: Weights of a layer would regrow, and do not train.
        """
        if self.growth is not None and step > 0 and self.updater.changes_masks(step):
            self._refuse_frozen()
            self._score_sums()
        with self.scores.cache():
            return super().masks_after(step)

    def _refuse_frozen(self) -> None:
        for name, kernel in self.weights.items():
            if not kernel.variable.trainable and name not in self.pattern.keep_mask_layers:
                raise LayerError(
                    f"layer {name!r}: its kernel must train with kind={self.config.kind!r}, because regrown weights "
                    f"start at zero, and it is frozen (trainable=False). Unfreeze it until step {self.last_step}, or "
                    f"exclude the layer."
                )

    def _score_sums(self) -> None:
        """Score the sums of the gradients since the last update."""
        if self.growth is None or self.growth.gradients is None:
            return
        for name, units in self.pattern.units.items():
            sums = {layer: self.weights[layer].read_gradient_sum() for layer in units.parts}
            self.growth.gradients.add(name, sums)

    def clear_gradient_sums(self) -> None:
        """Start the sums of the gradients again."""
        for kernel in self.weights.values():
            kernel.clear_gradient_sum()

    def set_masks(self, masks: Mapping[str, Array]) -> None:
        """See `Run.set_masks`. Weights that are pruned, or regrow, lose their state in the optimizer."""
        if self.config.has_regrowth:
            # Before the masks are set, so that an interrupted call can be repeated.
            for layer, mask in masks.items():
                kernel = self.weights[layer]
                if self.growth is not None and kernel.slot is not None and kernel.mask is not None:
                    kernel.slot.clear_state(kernel.mask == self.pattern.framework.from_array(mask, kernel.stored))
        super().set_masks(masks)

    def write(self) -> None:
        """Write the state to the variables."""
        initial = np.frombuffer(np.float64(self.updater.schedule.initial).tobytes(), dtype=np.uint8)
        self._initial.assign(initial)
        self.write_frozen()
        for variables, values in ((self._keep, self.updater.keep), (self._scheduled, self.updater.scheduled_keep)):
            for name, variable in variables.items():
                if values is not None:
                    variable.assign(wrap_for_assign(values[name]))

    @property
    def _units_in_masks(self) -> dict[str, str]:
        """Name of units → the layer whose mask, in memory order, has one boolean for each of them."""
        if self.config.kind == "progressive":  # then masks are also interpolated between updates
            return {}
        found = {}
        for name, units in self.pattern.units.items():
            layer = next(iter(units.parts))
            view = self.pattern.views[layer]
            if units.unit_size == 1 and view.outputs_last and 1 < units.stride == view.canonical_shape[0]:
                found[name] = layer
        return found

    def read_frozen(self) -> None:
        """Freeze the masks of the layers that the variables name, besides those that the user has added since."""
        frozen = self.pattern.keep_mask_layers
        for name, is_frozen in zip(self.pattern.units, self.pattern.framework.to_array(self._frozen), strict=True):
            if is_frozen and not self.pattern.is_frozen(name):
                frozen[name] = FROZEN_BEFORE
            elif not is_frozen and frozen.get(name) in (REACHED, FROZEN_BEFORE):
                del frozen[name]

    def write_frozen(self) -> None:
        """Write which layers keep their masks to the variables."""
        self._frozen.assign(np.array([self.pattern.is_frozen(name) for name in self.pattern.units]))

    def _arrays(self, variables: Mapping[str, keras.Variable]) -> dict[str, Array]:
        return {name: self.pattern.framework.to_array(variable) for name, variable in variables.items()}
