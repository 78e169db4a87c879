"""Select, apply and verify the masks of the layers of one pattern, in every framework."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from secateur._array import Array, count_true, has_nan
from secateur.errors import ConfigError, ScoreError, StateError
from secateur.masking.locked import describe_locked_zeros
from secateur.masking.regrowth import GrowthScores, make_updater
from secateur.masking.run_options import RunOptions
from secateur.masking.scores import AccumulatedScores
from secateur.masking.update_history import UpdateHistory, merge_histories
from secateur.masking.weight import PrunedWeight
from secateur.patterns import BasePattern
from secateur.patterns.tiling import Tiling
from secateur.patterns.verification import verify_masks, verify_zeros
from secateur.results import GroupResult, LayerResult, PruningReport

__all__ = ["PrunedWeight", "Run", "adopt_maxima", "build_report", "refuse_nan", "refuse_violations"]


FREE = "no zeros were locked here when the state was saved"
"""Reason why a pattern lock that resumed from a state keeps no zeros in a layer."""

Weight = TypeVar("Weight", bound=PrunedWeight)


class Run(Generic[Weight]):
    """The masks of the layers of one pattern, and how they change from step to step.

    Args:
        pattern: The pattern with its layers.
        weights: Layer → its weight.
        is_new: Whether to start from the current weights, rather than from a state that is loaded later.
        options: Settings besides the configuration of the pattern.

    Attributes:
        is_new: See above.
        growth: The scores by which pruned units regrow; ``None`` for kinds without regrowth.
        history: The share of units pruned after each update.

    Raises:
        ConfigError: The criterion ranks by gradients, but an update before the first gradient prunes.
    """

    def __init__(
        self,
        pattern: BasePattern,
        weights: Mapping[str, Weight],
        *,
        is_new: bool = True,
        options: RunOptions | None = None,
    ) -> None:
        self.pattern = pattern
        self.config = pattern.config
        self.observer = options.observer if options else None
        self.is_new = is_new
        self.history = UpdateHistory()
        self._steps_taken = options.steps_taken if options else 0
        self.weights = layer_weights = {name: weights[name] for name in pattern.views}

        def read_weight(layer: str) -> Array:
            # Does not use `self`, because a reference cycle would keep the weights in memory after the run.
            return layer_weights[layer].canonical()

        self.growth = GrowthScores(pattern, read_weight) if self.config.kind in ("rigl", "set") else None
        self.updater = make_updater(pattern, self.growth, is_new=is_new, options=options)
        self.scores = AccumulatedScores(pattern, read_weight)
        self.last_step = 0 if self.updater.is_locked else self.updater.schedule.last_change
        self._check_first_gradient()

    def start(self) -> None:
        """Set the masks that apply before the first step, unless they are loaded later."""
        if not self.is_new:
            return
        self.set_masks(self.updater.initial_masks())
        if not self.updater.is_locked:
            self.history.start(self._steps_taken, self.updater.sparsity())
        if self._steps_taken == 0 or not self.scores.needs_gradient:  # later, there are no gradients to rank by yet
            self.set_masks(self.masks_after(self._steps_taken))

    def masks_after(self, step: int) -> dict[str, Array]:
        """Select the masks after `step` steps. The result is empty if no update is due."""
        if not self.updater.changes_masks(step):
            return {}
        before, masks = self.updater.sparsity(), self._select_masks(step)
        self.history.record(step, before=before, after=self.updater.sparsity())
        return masks

    def _select_masks(self, step: int) -> dict[str, Array]:
        masks = self._masks() if self._has_masks else {}
        current = {name: self.pattern.framework.to_array(mask) for name, mask in masks.items()}
        given = self.observer.find_scores(step) if self.observer and self.updater.reads_scores(step) else None
        if given is not None:
            return self._rank_by(given, step, current) if given else {}
        # Before the first gradient, nothing can be ranked, and nothing is due; see `_check_first_gradient`.
        stream = self.scores.stream_equal if step == 0 and self.scores.needs_gradient else self.scores.stream
        return self.updater.advance(step, stream, current) or {}

    def _rank_by(self, given: Mapping[str, Any], step: int, masks: Mapping[str, Array]) -> dict[str, Array]:
        """Select the masks after `step` steps by the scores of an observer."""
        if missing := self.weights.keys() - given.keys():
            raise ScoreError(
                f"layer {min(missing)!r}: there are no scores to rank by. Score every layer, or exclude it."
            )
        scores = {layer: self._read_scores(layer, given[layer]) for layer in self.weights}
        with self.scores.replace_totals(scores):
            return self.updater.advance(step, self.scores.stream, masks) or {}

    def _read_scores(self, layer: str, given: Any) -> Array:
        """Return scores in the weight's shape as an (O, K, I) array, and scores of units as a one-dimensional array."""
        view, scores = self.pattern.views[layer], self.pattern.framework.to_array(given)
        if tuple(scores.shape) == tuple(view.shape):
            return view.to_canonical(scores)
        units = next(units for units in self.pattern.units.values() if layer in units.parts)
        if len(units.parts) == 1 and math.prod(scores.shape) == units.count:
            return scores.reshape((-1,))
        raise ScoreError(
            f"layer {layer!r}: scores must have the shape of the weight, {tuple(view.shape)}, or one score for each "
            f"of the {units.count} units, found shape {tuple(scores.shape)}."
        )

    def set_masks(self, masks: Mapping[str, Array]) -> None:
        """Set the masks that `masks_after` returned."""
        for layer, mask in masks.items():
            weight = self.weights[layer]
            weight.write_mask(self.pattern.framework.from_array(mask, weight.stored))

    def violations(self) -> dict[str, str]:
        """Verify masks and weights, and return layer → problem."""
        masks = {name: weight.read_mask() for name, weight in self.weights.items() if weight.mask is not None}
        weights = {name: weight.read_part() for name, weight in self.weights.items()}
        if self._has_masks and not self.updater.is_locked and self.updater.scheduled_keep is None:
            return verify_masks(self.pattern, masks, weights, sparsity=self.updater.requested)
        return verify_zeros(masks, weights)

    @property
    def free_layers(self) -> list[str]:
        """The layers in which a pattern lock keeps no zeros."""
        return [name for name, weight in self.weights.items() if self.updater.is_locked and weight.mask is None]

    def results(self) -> list[LayerResult]:
        """Return what is pruned in each layer."""
        if self.updater.is_locked:
            return [self._describe_lock(layer) for layer in self.pattern.views if layer not in self.free_layers]
        kept = self.pattern.find_kept_units(self._masks()) if self._has_masks else {}
        return [self._result(layer, parts, kept) for layer, parts in self.pattern.list_parts().items()]

    def group_results(self) -> list[GroupResult]:
        """Return what is pruned in each group of units with slices in several layers."""
        if self.pattern.coupling is None:
            return []
        kept = self.pattern.find_kept_units(self._masks()) if self._has_masks else {}
        return [
            GroupResult(
                name=name,
                kind=self.pattern.coupling,
                layers=tuple(units.parts),
                units=units.count,
                pruned_units=count_true(~kept[name]) if name in kept else 0,
            )
            for name, units in self.pattern.units.items()
        ]

    def describe(self) -> dict[str, Any]:
        """Describe the run by its configuration and shapes, so that its saved states can be recognized."""
        values = self.config.model_dump(mode="json", exclude={"sparsity_decay_type"})
        schedule = self.config.sparsity_decay_type
        if not isinstance(schedule, str):
            # Partial functions and callable objects have no name; use their type's.
            schedule = getattr(schedule, "__qualname__", type(schedule).__qualname__)
        values |= {"sparsity_decay_type": schedule}
        if self.updater.schedule.parts_until is not None:
            values["parts_until"] = self.updater.schedule.parts_until
        return {
            "config": values,
            "shapes": {name: list(weight.shape) for name, weight in self.weights.items()},
        }

    def replace_maximum(self, maximum: float | None) -> None:
        """Replace ``max_sparsity_ratio_per_op`` of the run."""
        if maximum != self.config.max_sparsity_ratio_per_op:
            self.pattern.replace_maximum(maximum)
            self.config = self.updater.config = self.pattern.config

    @property
    def _has_masks(self) -> bool:
        return all(weight.mask is not None for weight in self.weights.values())

    def _masks(self) -> dict[str, Any]:
        return {name: weight.read_mask() for name, weight in self.weights.items()}

    def _result(self, layer: str, parts: Mapping[str, Tiling], kept: Mapping[str, Array]) -> LayerResult:
        weight, pattern = self.weights[layer], self.config.pattern
        shape, size = weight.shape, math.prod(weight.shape)
        units = sum(self.pattern.units[name].total for name in parts)
        pruned_units = sum(self.pattern.units[name].add(count_true(~kept[name])) for name in parts if name in kept)
        tiling, *others = parts.values()
        # The blocks of a single weight can be verified, whatever units they belong to.
        if not others and tiling.channel_blocks is not None:
            pattern, blocks = tiling.channel_blocks
            units, pruned_units = units * blocks, pruned_units * blocks
        return LayerResult(
            name=layer,
            pattern=pattern,
            shape=shape,
            weights=size,
            pruned_weights=0 if weight.mask is None else size - weight.count_kept(),
            units=units,
            pruned_units=pruned_units,
        )

    def _describe_lock(self, layer: str) -> LayerResult:
        mask, view = self.weights[layer].read_mask(), self.pattern.views[layer]
        locked, size = describe_locked_zeros(view, mask), math.prod(view.shape)
        return LayerResult(
            name=layer,
            pattern=locked.pattern,
            shape=view.shape,
            weights=size,
            pruned_weights=size - count_true(mask),
            units=locked.units,
            pruned_units=locked.pruned_units,
        )

    def _check_first_gradient(self) -> None:
        if self.scores.needs_gradient and self.config.has_regrowth:
            raise ConfigError(
                f"criterion must not need gradients with kind={self.config.kind!r}, found {self.config.criterion!r}: "
                f"it prunes before the first gradient. Rank by 'magnitude'."
            )
        if self.scores.needs_gradient and self.updater.ranks_at_start():
            raise ConfigError(
                f"start_step must be at least 1 for the criterion {self.config.criterion!r}: it ranks by gradients, "
                f"and there are none at step 0, where this run prunes. Set start_step=1, or rank by 'magnitude'."
            )


@contextmanager
def adopt_maxima(runs: Sequence[Run[Any]], described: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Give runs the ``max_sparsity_ratio_per_op`` of runs that `Run.describe` described; undo that after an error."""
    before = [run.config.max_sparsity_ratio_per_op for run in runs]
    try:
        for run, values in zip(runs, described, strict=True):
            run.replace_maximum(values["config"].get("max_sparsity_ratio_per_op"))
        yield
    except BaseException:
        for run, maximum in zip(runs, before, strict=True):
            run.replace_maximum(maximum)
        raise


def build_report(runs: Iterable[Run[Any]], dense: Mapping[str, str], step: int, model_weights: int) -> PruningReport:
    """Build the report of all runs of a model after `step` steps.

    Args:
        runs: The runs.
        dense: Layer left dense → the reason. A saved state can lock some of them later.
        step: Number of steps taken.
        model_weights: Number of weights of the whole model.
    """
    runs = list(runs)
    results = tuple(result for run in runs for result in run.results())
    free = {name: FREE for run in runs for name in run.free_layers}
    pruned = {result.name for result in results}
    last_step = max(run.last_step for run in runs)
    moving = [run for run in runs if not run.updater.is_locked]
    counts = [sum(units.total for units in run.pattern.units.values()) for run in moving]
    return PruningReport(
        layers=results,
        dense={name: reason for name, reason in (free | dict(dense)).items() if name not in pruned},
        step=step,
        last_step=last_step,
        model_weights=model_weights,
        configs=tuple(run.config for run in runs),
        groups=tuple(group for run in runs for group in run.group_results()),
        history=merge_histories([run.history for run in moving], counts, step) if last_step else (),
    )


def refuse_nan(weights: Mapping[str, PrunedWeight]) -> None:
    """Raise `ScoreError` if a weight contains ``nan``."""
    for name, weight in weights.items():
        if has_nan(weight.stored):
            raise ScoreError(f"layer {name!r}: weights must be numbers, found nan. Restore them before pruning.")


def refuse_violations(wrong: Mapping[str, str]) -> None:
    """Raise `StateError` if there are problems, as returned by `Run.violations`."""
    if wrong:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in wrong.items())
        raise StateError(f"The masks or weights of {len(wrong)} layers are invalid:{lines}")
