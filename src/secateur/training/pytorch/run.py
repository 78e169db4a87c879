"""The run of one pattern with torch optimizers: accumulate scores, regularize, update masks, save and load state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
import torch

from secateur._array import Array, namespace, to_numpy
from secateur._wording import format_list, format_value
from secateur.errors import ConfigError, LayerError
from secateur.masking.run import Run, adopt_maxima
from secateur.masking.run_options import RunOptions
from secateur.masking.scores import AccumulatedScores
from secateur.patterns import BasePattern
from secateur.patterns.tiling import Units
from secateur.training.group_lasso import compute_shrinkage
from secateur.training.pytorch.latent_weight import LatentParameter
from secateur.training.pytorch.state import check_arrays, make_damage_error, to_host
from secateur.training.pytorch.weight import ParameterSlot, TrainedParameter
from secateur.training.resume import SavedProgress, find_problem, refuse_other_runs

__all__ = ["PytorchRun", "Snapshot"]


class Snapshot(NamedTuple):
    """The state of a run at one point in time: progress, accumulated scores, frozen layers, and sums of gradients."""

    progress: dict[str, Any]
    totals: dict[str, Array]
    keep_mask_layers: dict[str, str]
    gradient_sums: dict[str, torch.Tensor | None]


class PytorchRun(Run[TrainedParameter]):
    """The scores and masks of the layers of one pattern, which hooks of the optimizers update.

    Args:
        pattern: The pattern with its layers.
        weights: Layer → its weight.
        options: Settings besides the configuration of the pattern.

    Raises:
        ConfigError: The criterion ranks by gradients, but an update before the first gradient prunes.
        LayerError: Layers of different optimizers share units.
    """

    def __init__(
        self, pattern: BasePattern, weights: Mapping[str, TrainedParameter], options: RunOptions | None = None
    ) -> None:
        super().__init__(pattern, weights, is_new=not (options and options.is_resumed), options=options)
        self._check_slots()

    def accumulate_scores(self, step: int, optimizer: Any) -> None:
        """Accumulate scores from the weights and gradients before step number `step` of `optimizer`."""
        if self.observer is not None and optimizer is self._get_first_optimizer():
            self.observer.before_step(step)
        for weight in self._find_latent_weights(optimizer):
            if step > self.last_step:
                weight.latent = None
            weight.reveal(self.config.sr_ste_decay)
        if self._grows_by_gradient and self.updater.schedule.sums_gradients(step):
            self._sum_gradients(step, optimizer)
        every_step = (self.scores.decay > 0 or self.scores.sees_every_step) and step <= self.last_step
        if not every_step and not (self.scores.needs_gradient and self.updater.reads_scores(step)):
            return
        self._add_scores(self.scores, optimizer, TrainedParameter.read_gradient)

    def _sum_gradients(self, step: int, optimizer: Any) -> None:
        """Add the gradients of step number `step`, and before an update score the sums since the last one."""
        assert self.growth is not None
        assert self.growth.gradients is not None
        for weight in self.weights.values():
            if weight.slot.optimizer is optimizer:
                weight.add_gradient(getattr(torch, self.config.score_dtype))
        if self.updater.reads_scores(step):
            self._add_scores(self.growth.gradients, optimizer, TrainedParameter.read_gradient_sum)

    def masks_after(self, step: int) -> dict[str, Array]:
        """See `Run.masks_after`.

        Raises:
            LayerError: Weights of a layer would regrow, and do not train.
        """
        if self.growth is not None and step > 0 and self.updater.changes_masks(step):
            self._refuse_frozen()
        return super().masks_after(step)

    def _refuse_frozen(self) -> None:
        for name, weight in self.weights.items():
            if not weight.parameter.requires_grad and name not in self.pattern.keep_mask_layers:
                raise LayerError(
                    f"layer {name!r}: its weight must train with kind={self.config.kind!r}, because regrown weights "
                    f"start at zero, and it is frozen (requires_grad=False). Unfreeze it until step {self.last_step}, "
                    f"or exclude the layer."
                )

    def set_masks(self, masks: Mapping[str, Array]) -> None:
        """See `Run.set_masks`. Weights that are pruned, or regrow, lose their state in the optimizers.

        The sums of the gradients that they regrew by start again.
        """
        if self.growth is not None:
            # Before the masks are set, so that an interrupted call can be repeated.
            for layer, mask in masks.items():
                weight = self.weights[layer]
                weight.clear_optimizer_state(self.pattern.framework.from_array(mask, weight.stored))
                weight.gradient_sum = None
        super().set_masks(masks)

    @property
    def needs_gradient(self) -> bool:
        """Whether gradients are read before a step."""
        return (
            self._grows_by_gradient
            or self.config.kind == "sr_ste"
            or (self.scores.needs_gradient and not self.updater.is_locked)
        )

    @property
    def _grows_by_gradient(self) -> bool:
        return self.growth is not None and self.growth.gradients is not None

    def check_rates(self, step: int, optimizer: Any) -> None:
        """Raise `ConfigError` if step number `step` of `optimizer` must shrink units but has no learning rate."""
        for units in self._find_regularized_units(step, optimizer):
            self._read_rate(units)

    def regularize(self, step: int, optimizer: Any) -> None:
        """Shrink units after step number `step` of `optimizer`."""
        if self.observer is not None and optimizer is self._get_first_optimizer():
            self.observer.after_step(step)
        for latent in self._find_latent_weights(optimizer):
            latent.hide()
        for units in self._find_regularized_units(step, optimizer):
            parts = {layer: self.weights[layer] for layer in units.parts}
            strength = self.config.reg_coeff * self._read_rate(units)
            factors = compute_shrinkage(units, {layer: weight.canonical() for layer, weight in parts.items()}, strength)
            for layer, weight in parts.items():
                weight.shrink(factors[layer])

    def snapshot(self) -> Snapshot:
        """Return the values that `accumulate_scores` and `masks_after` replace; they do not change them in place."""
        sums = {name: weight.gradient_sum for name, weight in self.weights.items()}
        return Snapshot(self.updater.progress(), dict(self.scores.totals), dict(self.pattern.keep_mask_layers), sums)

    def roll_back(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""
        self.updater.restore(snapshot.progress)
        self.scores.totals = snapshot.totals
        self.pattern.keep_mask_layers.clear()
        self.pattern.keep_mask_layers.update(snapshot.keep_mask_layers)
        for name, total in snapshot.gradient_sums.items():
            self.weights[name].gradient_sum = total

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values for `load_state_dict`."""
        latent = {name: weight.latent for name, weight in self.weights.items() if isinstance(weight, LatentParameter)}
        sums = {name: weight.gradient_sum for name, weight in self.weights.items() if weight.gradient_sum is not None}
        return {
            **self.describe(),
            **({"latent": {name: values for name, values in latent.items() if values is not None}} if latent else {}),
            **({"gradients": sums} if self._grows_by_gradient else {}),
            "masks": {name: weight.mask for name, weight in self.weights.items() if weight.mask is not None},
            "progress": {key: self._to_tensors(value) for key, value in self.updater.progress().items()},
            "scores": dict(self.scores.totals),
            "keep_mask_layers": dict(self.pattern.keep_mask_layers),
        }

    def check_state(self, state: Mapping[str, Any], step: int) -> None:
        """Raise `StateError` if this run cannot reach a state.

        Args:
            state: The state of a run, whose keys and types have been checked.
            step: Number of steps taken when it was saved.
        """
        refuse_other_runs([state], [self.describe()])
        maximum = self.config.max_sparsity_ratio_per_op
        with adopt_maxima([self], [state]):
            self._check_progress(state, step)
        self.replace_maximum(maximum)

    def _check_progress(self, state: Mapping[str, Any], step: int) -> None:
        self._check_arrays(state)
        self._check_latent(state, step)
        masks = {name: to_host(f"masks of {name!r}", mask) for name, mask in state["masks"].items()}
        keep, scheduled = (
            None
            if state["progress"][key] is None
            else {name: to_host(f"progress.{key} of {name!r}", kept) for name, kept in state["progress"][key].items()}
            for key in ("keep", "condemned_keep")
        )
        requested, initial = state["progress"]["asked"], state["progress"]["initial"]
        saved = SavedProgress(step, masks, keep, scheduled, requested, initial, state["keep_mask_layers"])
        if (problem := find_problem(self.updater, saved)) is not None:
            raise make_damage_error(problem)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that `check_state` accepted."""
        self.replace_maximum(state["config"].get("max_sparsity_ratio_per_op"))
        for name, weight in self.weights.items():
            mask = state["masks"].get(name)
            weight.load_mask(mask)
            if isinstance(weight, LatentParameter):
                weight.load_latent(state["latent"].get(name))
            weight.load_gradient_sum(state.get("gradients", {}).get(name))
        self.updater.restore({key: self._to_arrays(value) for key, value in state["progress"].items()})
        self.scores.totals = {key: self._to_total(key, total) for key, total in state["scores"].items()}
        self.pattern.keep_mask_layers = dict(state["keep_mask_layers"])

    def _to_total(self, key: str, total: Array) -> Array:
        """Copy saved scores to the device of the weights."""
        stored = self.weights[key].stored if key in self.weights else self._get_any_stored(key)
        array = total if isinstance(total, type(stored)) else self.pattern.framework.from_array(total, stored)
        xp = namespace(array)
        return xp.asarray(array, copy=True, device=array_api_compat.device(stored))

    def _to_tensors(self, value: Any) -> Any:
        """Convert masks of units to tensors of the framework; return other values unchanged."""
        if not isinstance(value, Mapping):
            return value
        return {
            name: self.pattern.framework.from_array(kept, self._get_any_stored(name)) for name, kept in value.items()
        }

    def _to_arrays(self, value: Any) -> Any:
        """Invert `_to_tensors`, on the device of the weights."""
        if not isinstance(value, Mapping):
            return value
        tensors = {
            name: self.pattern.framework.from_array(to_numpy(kept).copy(), self._get_any_stored(name))
            for name, kept in value.items()
        }
        return {name: self.pattern.framework.to_array(kept) for name, kept in tensors.items()}

    def _find_latent_weights(self, optimizer: Any) -> list[LatentParameter]:
        latent = [weight for weight in self.weights.values() if isinstance(weight, LatentParameter)]
        return [weight for weight in latent if weight.slot.optimizer is optimizer]

    def _add_scores(
        self,
        scores: AccumulatedScores,
        optimizer: Any,
        read_gradient: Callable[[TrainedParameter], torch.Tensor | None],
    ) -> None:
        """Add the scores of the layers that `optimizer` trains and that have the gradients they need."""
        for name, units in self.pattern.units.items():
            parts = [(layer, self.weights[layer]) for layer in units.parts]
            if parts[0][1].slot.optimizer is optimizer:
                gradients = {layer: read_gradient(weight) for layer, weight in parts}
                if not scores.needs_gradient or all(gradient is not None for gradient in gradients.values()):
                    scores.add(name, gradients)

    def _get_any_stored(self, name: str) -> Array:
        return self.weights[next(iter(self.pattern.units[name].parts))].stored

    def _check_arrays(self, state: Mapping[str, Any]) -> None:
        stored = {name: tuple(weight.stored.shape) for name, weight in self.weights.items()}
        counts = {name: (units.count,) for name, units in self.pattern.units.items()}
        check_arrays("masks", state["masks"], stored, "bool", all_or_none=not self.updater.is_locked)
        for key in ("keep", "condemned_keep"):
            if (found := state["progress"][key]) is not None:
                check_arrays(f"progress.{key}", found, counts, "bool", all_or_none=True)
                if not found:
                    raise make_damage_error(
                        f"progress.{key} must include all of {format_list(map(repr, counts))}, or be None"
                    )
        # Each optimizer adds the scores of its layers, so those of other layers may still be missing.
        shapes = self.scores.shapes if self.scores.is_accumulated and not self.updater.is_locked else {}
        check_arrays("scores", state["scores"], shapes, self.config.score_dtype, all_or_none=False)
        shapes = stored if self._grows_by_gradient else {}
        check_arrays("gradients", state.get("gradients", {}), shapes, self.config.score_dtype, all_or_none=False)
        for name, total in (*state["scores"].items(), *state.get("gradients", {}).items()):
            if np.isnan(to_host(f"scores of {name!r}", total)).any():
                raise make_damage_error(f"scores of {name!r} must be numbers, found nan")

    def _check_latent(self, state: Mapping[str, Any], step: int) -> None:
        weights = {name: weight for name, weight in self.weights.items() if isinstance(weight, LatentParameter)}
        if not weights:
            return
        found = state.get("latent", {})
        stored = {name: tuple(weight.stored.shape) for name, weight in weights.items()}
        dtype = str(next(iter(weights.values())).stored.dtype).removeprefix("torch.")
        check_arrays("latent", found, stored, dtype, all_or_none=False)
        if state["masks"] and step < self.last_step and found.keys() != stored.keys():
            raise make_damage_error(
                f"latent must include all of {format_list(map(repr, stored))} before the last update"
            )

    def _find_regularized_units(self, step: int, optimizer: Any) -> list[Units]:
        if self.config.reg_type is None or self.config.reg_coeff == 0 or step > self.last_step:
            return []
        return [units for units in self.pattern.units.values() if self._get_slot(units).optimizer is optimizer]

    def _get_first_optimizer(self) -> Any:
        return next(iter(self.weights.values())).slot.optimizer

    def _get_slot(self, units: Units) -> ParameterSlot:
        return self.weights[next(iter(units.parts))].slot

    def _read_rate(self, units: Units) -> float:
        rate = self._get_slot(units).read_learning_rate()
        try:
            value = float(rate)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value < math.inf:
            raise ConfigError(
                f"layer {next(iter(units.parts))!r}: group lasso needs a learning rate of at least 0, found "
                f"{format_value(rate)}. Set lr in its parameter group, or set reg_type=None."
            )
        return value

    def _check_slots(self) -> None:
        for units in self.pattern.units.values():
            if len({id(self.weights[layer].slot.optimizer) for layer in units.parts}) > 1:
                raise LayerError(
                    f"layers {', '.join(units.parts)} share units, so the same optimizer must train them all."
                )
