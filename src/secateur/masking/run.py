"""One pattern's layers through a run: masks chosen, applied and verified. Knows no framework and no optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from secateur._array import Array, count_true, has_nan
from secateur.errors import ConfigError, ScoreError, StateError
from secateur.masking.scores import AccumulatedScores
from secateur.masking.updater import MaskUpdater
from secateur.patterns import BasePattern
from secateur.patterns.verification import verify_masks, verify_zeros
from secateur.results import LayerResult, PruningReport

__all__ = ["PrunedWeight", "Run", "build_report", "refuse_nan", "refuse_violations"]


class PrunedWeight(Protocol):
    """One pruned weight, in whatever way its framework holds it.

    Attributes:
        mask: Booleans in the weight's shape as stored, ``True`` = kept; ``None``: nothing is pruned yet.
    """

    mask: Any

    @property
    def stored(self) -> Array:
        """The weight itself."""

    def canonical(self) -> Array:
        """The weight as an (O, K, I) array of at least float32."""

    def apply_mask(self) -> None:
        """Set to zero what the mask prunes."""


Weight = TypeVar("Weight", bound=PrunedWeight)


class Run(Generic[Weight]):
    """Masks of one pattern's layers from step to step.

    Args:
        pattern: The pattern, bound to the layers.
        weights: Layer → its weight.
        is_new: Whether it starts with the weights as they are, rather than from a state that is yet to be read.

    Raises:
        ConfigError: The criterion ranks by gradients and the first update lies before the first gradient.
    """

    def __init__(self, pattern: BasePattern, weights: Mapping[str, Weight], *, is_new: bool = True) -> None:
        self.pattern = pattern
        self.config = pattern.config
        self.weights = own = {name: weights[name] for name in pattern.views}
        self.updater = MaskUpdater(pattern, is_new=is_new)
        # Not through `self`, so that weights are gone as soon as nobody holds the run.
        self.scores = AccumulatedScores(pattern, lambda layer: own[layer].canonical())
        self.last_step = 0 if self.updater.is_locked else self.updater.schedule.end
        self._check_first_gradient()

    def start(self) -> None:
        """Set the masks that hold before the first step."""
        self.set_masks(self.updater.initial_masks())
        self.set_masks(self.masks_after(0))

    def masks_after(self, step: int) -> dict[str, Array]:
        """Layer → its mask after `step` steps, where masks are due to change then; else empty."""
        if not self.updater.changes_masks(step):
            return {}
        masks = self._masks() if self._has_masks else {}
        held = {name: self.pattern.framework.to_array(mask) for name, mask in masks.items()}
        return self.updater.advance(step, self.scores.stream, held) or {}

    def set_masks(self, masks: Mapping[str, Array]) -> None:
        """Take over what `masks_after` returned."""
        for layer, mask in masks.items():
            self.weights[layer].mask = self.pattern.framework.from_array(mask, self.weights[layer].stored)

    def violations(self) -> dict[str, str]:
        """Layers whose mask is not of the pattern, or whose weights are not what it says → what is wrong."""
        masks = {name: weight.mask for name, weight in self.weights.items() if weight.mask is not None}
        weights = {name: weight.stored for name, weight in self.weights.items()}
        if self._has_masks and not self.updater.is_locked and self.updater.scheduled_keep is None:
            return verify_masks(self.pattern, masks, weights, sparsity=self.updater.requested)
        return verify_zeros(masks, weights)

    def results(self) -> list[LayerResult]:
        """What is pruned, layer by layer."""
        kept = self.pattern.find_kept_units(self._masks()) if self._has_masks else {}
        return [
            self._result(layer, tiling.count, kept.get(name))
            for name, units in self.pattern.units.items()
            for layer, tiling in units.parts.items()
        ]

    def describe(self) -> dict[str, Any]:
        """Settings, a schedule of one's own by its name, and shapes: what tells a run's state from another's."""
        values = self.config.model_dump(mode="json", exclude={"sparsity_decay_type"})
        schedule = self.config.sparsity_decay_type
        if not isinstance(schedule, str):
            # A partial function or an object that is called has no name but that of its type.
            schedule = getattr(schedule, "__qualname__", type(schedule).__qualname__)
        return {
            "config": values | {"sparsity_decay_type": schedule},
            "shapes": {name: list(weight.stored.shape) for name, weight in self.weights.items()},
        }

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

    def _check_first_gradient(self) -> None:
        if self.scores.needs_gradient and not self.updater.is_locked and self.config.start_step == 0:
            raise ConfigError(
                f"start_step must be at least 1 for the criterion {self.config.criterion!r}: it ranks by gradients, "
                f"and there are none at step 0. Set start_step=1, or rank by 'magnitude'."
            )


def build_report(runs: Iterable[Run[Any]], dense: Mapping[str, str], step: int, model_weights: int) -> PruningReport:
    """What is pruned in all runs of a model after `step` steps."""
    runs = list(runs)
    return PruningReport(
        layers=tuple(result for run in runs for result in run.results()),
        dense=dict(dense),
        step=step,
        last_step=max(run.last_step for run in runs),
        model_weights=model_weights,
        configs=tuple(run.config for run in runs),
    )


def refuse_nan(weights: Mapping[str, PrunedWeight]) -> None:
    """Raise `ScoreError` if a weight has ``nan``."""
    for name, weight in weights.items():
        if has_nan(weight.stored):
            raise ScoreError(f"layer {name!r}: weights must be numbers, found nan. Restore it before pruning.")


def refuse_violations(wrong: Mapping[str, str]) -> None:
    """Raise `StateError` if there are any, as `Run.violations` returns them."""
    if wrong:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in wrong.items())
        raise StateError(f"The masks or weights of {len(wrong)} layers are not as they should be:{lines}")
