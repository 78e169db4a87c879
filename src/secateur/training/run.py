"""One pattern's layers through a run: scores gathered, masks updated, state saved. Knows no framework."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from secateur._array import Array, count_true, namespace, to_numpy
from secateur._wording import listed
from secateur.errors import ConfigError, LayerError, StateError
from secateur.patterns import BasePattern
from secateur.training.group import PruningGroup
from secateur.training.regularizer import shrinkage
from secateur.training.result import LayerResult
from secateur.training.scores import GatheredScores
from secateur.training.state import check_arrays

__all__ = ["HeldWeight", "Home", "Run"]


class Home(Protocol):
    """Where an optimizer keeps a weight."""

    @property
    def optimizer(self) -> Any:
        """The optimizer whose steps count for it."""

    def learning_rate(self) -> float:
        """The learning rate of this weight now."""


class HeldWeight(Protocol):
    """One pruned weight, in whatever way its framework holds it.

    Attributes:
        mask: Booleans in the weight's shape as stored, ``True`` = kept; ``None``: nothing is pruned yet.
    """

    mask: Any

    @property
    def home(self) -> Home:
        """Where it is held."""

    @property
    def stored(self) -> Array:
        """The weight itself."""

    def canonical(self) -> Array:
        """The weight as an (O, K, I) array of at least float32."""

    def gradient(self) -> Array | None:
        """The gradient as an (O, K, I) array, freed of a loss scale; ``None`` if there is none."""

    def shrink(self, factors: Array) -> None:
        """Multiply by (O, K, I) factors."""


class Run:
    """Scores and masks of one pattern's layers from step to step.

    Args:
        pattern: The pattern, bound to the layers.
        weights: Layer → its weight.

    Raises:
        ConfigError: The criterion ranks by gradients and the first update lies before the first gradient.
        LayerError: Units lie in layers that different optimizers hold.
    """

    def __init__(self, pattern: BasePattern, weights: Mapping[str, HeldWeight]) -> None:
        self.pattern = pattern
        self.config = pattern.config
        self.weights = {name: weights[name] for name in pattern.views}
        self.group = PruningGroup(pattern)
        self.scores = GatheredScores(pattern, lambda layer: self.weights[layer].canonical())
        self.last_step = 0 if self.group.is_locked else self.group.timeline.end
        self._check_first_gradient()
        self._check_homes()

    def start(self) -> None:
        """Set the masks that hold before the first step."""
        self.set_masks(self.group.initial_masks())
        self.set_masks(self.masks_after(0))

    def gather(self, step: int, optimizer: Any) -> None:
        """Take in the weights and gradients with which `optimizer` is about to make step number `step`."""
        every_step = self.scores.decay > 0 and step <= self.last_step
        if not every_step and not (self.scores.needs_gradient and self.group.reads_scores(step)):
            return
        for name, units in self.pattern.units.items():
            parts = [(layer, self.weights[layer]) for layer in units.parts]
            if parts[0][1].home.optimizer is optimizer:
                gradients = {layer: weight.gradient() for layer, weight in parts}
                if not self.scores.needs_gradient or all(gradient is not None for gradient in gradients.values()):
                    self.scores.add(name, gradients)

    def regularize(self, step: int, optimizer: Any) -> None:
        """Shrink units after step number `step` of `optimizer`."""
        if self.config.reg_type is None or self.config.reg_coeff == 0 or step > self.last_step:
            return
        for units in self.pattern.units.values():
            parts = {layer: self.weights[layer] for layer in units.parts}
            home = next(iter(parts.values())).home
            if home.optimizer is optimizer:
                strength = self.config.reg_coeff * home.learning_rate()
                factors = shrinkage(units, {layer: weight.canonical() for layer, weight in parts.items()}, strength)
                for layer, weight in parts.items():
                    weight.shrink(factors[layer])

    def masks_after(self, step: int) -> dict[str, Array]:
        """Layer → its mask after `step` steps, where masks are due to change then; else empty."""
        masks = self._masks() if self._has_masks else {}
        held = {name: self.pattern.as_array(mask) for name, mask in masks.items()}
        return self.group.advance(step, self.scores.stream, held) or {}

    def set_masks(self, masks: Mapping[str, Array]) -> None:
        """Take over what `masks_after` returned."""
        for layer, mask in masks.items():
            self.weights[layer].mask = self.pattern.like(mask, self.weights[layer].stored)

    def violations(self) -> dict[str, str]:
        """Layers whose mask is not of the pattern, or whose pruned weights are not zero → what is wrong."""
        wrong = {}
        for name, weight in self.weights.items():
            if weight.mask is not None and (revived := count_true(weight.stored[~weight.mask] != 0)):
                wrong[name] = f"{revived} pruned weights are not zero; was the model changed behind the pruner's back?"
        if self._has_masks and not self.group.is_locked and self.group.condemned_keep is None:
            wrong = self.pattern.violations(self._masks(), self.group.asked) | wrong
        return wrong

    def results(self) -> list[LayerResult]:
        """What is pruned, layer by layer."""
        kept = self.pattern.kept_units(self._masks()) if self._has_masks else {}
        return [
            self._result(layer, layout.count, kept.get(name))
            for name, units in self.pattern.units.items()
            for layer, layout in units.parts.items()
        ]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that `load_state_dict` takes."""
        return {
            "config": self._described(),
            "shapes": {name: list(weight.stored.shape) for name, weight in self.weights.items()},
            "masks": {name: weight.mask for name, weight in self.weights.items() if weight.mask is not None},
            "progress": {key: self._as_tensors(value) for key, value in self.group.progress().items()},
            "scores": dict(self.scores.totals),
            "keep_mask_layers": dict(self.pattern.keep_mask_layers),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `StateError` if `state`, of the form of a run's state, is not of these layers and settings."""
        mine = {name: list(weight.stored.shape) for name, weight in self.weights.items()}
        if state["shapes"] != mine:
            differing = sorted(
                name for name in {*mine, *state["shapes"]} if mine.get(name) != state["shapes"].get(name)
            )
            raise StateError(
                f"The state is of another model. Layers that differ in name or shape: {listed(map(repr, differing))}. "
                f"Load it into the model it was saved with."
            )
        described = self._described()
        if state["config"] != described:
            keys = [key for key in described if described[key] != state["config"].get(key)]
            changes = "; ".join(f"{key} was {state['config'].get(key)!r}, is {described[key]!r}" for key in keys)
            raise StateError(f"The state is of a run with another configuration: {changes}.")
        self._check_arrays(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `check_state` accepted."""
        for name, weight in self.weights.items():
            mask = state["masks"].get(name)
            weight.mask = None if mask is None else self.pattern.like(to_numpy(mask).copy(), weight.stored)
        self.group.restore({key: self._as_arrays(value) for key, value in state["progress"].items()})
        self.scores.totals = {key: namespace(total).asarray(total, copy=True) for key, total in state["scores"].items()}
        self.pattern.keep_mask_layers = dict(state["keep_mask_layers"])

    @property
    def _has_masks(self) -> bool:
        return all(weight.mask is not None for weight in self.weights.values())

    def _masks(self) -> dict[str, Any]:
        return {name: weight.mask for name, weight in self.weights.items()}

    def _result(self, layer: str, units: int, kept: Array | None) -> LayerResult:
        weight = self.weights[layer]
        shape = tuple(weight.stored.shape)
        size = math.prod(shape)
        return LayerResult(
            name=layer,
            pattern=self.config.pattern,
            shape=shape,
            weights=size,
            pruned_weights=0 if weight.mask is None else size - count_true(weight.mask),
            units=units,
            pruned_units=0 if kept is None else units - count_true(kept),
        )

    def _as_tensors(self, value: Any) -> Any:
        """Unit masks as the framework's tensors; other values as they are."""
        if not isinstance(value, Mapping):
            return value
        return {name: self.pattern.like(kept, self._any_stored(name)) for name, kept in value.items()}

    def _as_arrays(self, value: Any) -> Any:
        """The inverse of `_as_tensors`, on the device of the weights."""
        if not isinstance(value, Mapping):
            return value
        own = {name: self.pattern.like(to_numpy(kept).copy(), self._any_stored(name)) for name, kept in value.items()}
        return {name: self.pattern.as_array(kept) for name, kept in own.items()}

    def _any_stored(self, name: str) -> Array:
        return self.weights[next(iter(self.pattern.units[name].parts))].stored

    def _described(self) -> dict[str, Any]:
        """The configuration as plain values, a function by its name."""
        values = self.config.model_dump(mode="python")
        schedule = values["sparsity_decay_type"]
        return values | {"sparsity_decay_type": getattr(schedule, "__qualname__", schedule)}

    def _check_arrays(self, state: Mapping[str, Any]) -> None:
        stored = {name: tuple(weight.stored.shape) for name, weight in self.weights.items()}
        counts = {name: (units.count,) for name, units in self.pattern.units.items()}
        weighed = {name: view.canonical_shape for name, view in self.pattern.views.items()}
        check_arrays("masks", state["masks"], stored, "bool", all_or_none=True)
        for key in ("keep", "condemned_keep"):
            check_arrays(f"progress.{key}", state["progress"][key] or {}, counts, "bool", all_or_none=True)
        shapes: Mapping[str, tuple[int, ...]] = counts if self.scores.is_per_unit else weighed
        # Each optimizer adds the scores of its layers, so that those of others may still be missing.
        check_arrays("scores", state["scores"], shapes, self.config.score_dtype, all_or_none=False)

    def _check_first_gradient(self) -> None:
        if self.scores.needs_gradient and not self.group.is_locked and self.config.start_step == 0:
            raise ConfigError(
                f"start_step must be at least 1 for the criterion {self.config.criterion!r}: it ranks by gradients, "
                f"and there are none at step 0. Set start_step=1, or rank by 'magnitude'."
            )

    def _check_homes(self) -> None:
        for units in self.pattern.units.values():
            if len({id(self.weights[layer].home.optimizer) for layer in units.parts}) > 1:
                raise LayerError(f"layers {', '.join(units.parts)} share units, so one optimizer must hold them all.")
