"""Decide which units of the layers of one pattern are kept after each step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from secateur._array import Array, count_true, namespace
from secateur.masking.run_options import RunOptions
from secateur.masking.update_schedule import UpdateSchedule
from secateur.patterns import BasePattern
from secateur.patterns.peers import Peers
from secateur.patterns.selection import Scores, find_cuts, keep_above

__all__ = ["REACHED", "MaskUpdater", "interpolate_mask"]


logger = logging.getLogger(__name__)

REACHED = "reached max_sparsity_ratio_per_op"
"""Reason why the mask of a layer is frozen, unless the user froze it."""

TOLERATED = 0.01
"""Share of units by which the initial sparsity may exceed the target, because units became zero in training."""

Stream = Callable[[str, Mapping[str, Array] | None], Scores]
"""Returns the scores to rank units by, given the name of the units and which of all units are kept."""


class MaskUpdater:
    """Update the masks of the layers of one pattern when updates are due, independent of optimizers.

    Args:
        pattern: The pattern with its layers.
        is_new: Whether to start from the current weights, rather than from a state that is loaded later.
        options: Settings besides the configuration of the pattern.

    Attributes:
        pattern: The pattern.
        schedule: When masks are updated.
        keep: Name of units → one boolean per unit, ``True`` = kept now; ``None``: all units are kept.
        requested: The sparsity for which `keep` was selected.
        scheduled_keep: In a progressive run, the units that will be kept once all parts are pruned.
    """

    def __init__(self, pattern: BasePattern, *, is_new: bool = True, options: RunOptions | None = None) -> None:
        self.pattern = pattern
        self.config = pattern.config
        self.keep: dict[str, Array] | None = self._initial_units() if is_new else None
        self.scheduled_keep: dict[str, Array] | None = None
        self._last_count: tuple[dict[str, Array] | None, float] | None = None
        initial, target = self.sparsity(), pattern.target_sparsity
        if self.is_locked:
            target = max(target, initial)
        initial = min(initial, target) if self._is_within_target() else initial
        options = options or RunOptions()
        request = None if options.observer is None else options.observer.find_sparsity
        self.schedule = UpdateSchedule(self.config, initial, target, options.parts_until, request)
        self.requested = self.schedule.initial

    @property
    def is_locked(self) -> bool:
        """Whether masks never change."""
        return self.config.kind == "pattern_lock"

    def sparsity(self) -> float:
        """Return the share of pruned units. Units are only counted again after the masks have changed."""
        if self._last_count is None or self._last_count[0] is not self.keep:
            total = sum(units.total for units in self.pattern.units.values())
            self._last_count = self.keep, self._count_pruned() / total
        return self._last_count[1]

    def initial_masks(self) -> dict[str, Array]:
        """Return the masks before the first step, in the stored shapes of the weights."""
        if self.is_locked:
            nonzero = {layer: self._read_weight(layer) != 0 for layer in self.pattern.views}
            return self.pattern.find_locked_weights(nonzero)
        return {} if self.keep is None else self.pattern.weight_masks(self.keep)

    def advance(self, step: int, stream: Stream, masks: Mapping[str, Array]) -> dict[str, Array] | None:
        """Return the masks after `step` steps, or ``None`` if they do not change.

        Args:
            step: Number of steps taken, after which `changes_masks` is true.
            stream: Returns the scores.
            masks: The current masks, in the stored shapes of the weights; empty before the first update.

        Raises:
            ScoreError: A score is ``nan``.
        """
        if self.config.kind == "progressive":
            is_later = self.schedule.parts_until is not None
            advance = self._advance_in_later_parts if is_later else self._advance_progressively
            return advance(step, stream, masks)
        requested = self.schedule.sparsity(step)
        self.keep, self.requested = self._select(requested, stream, self.keep), requested
        return self.pattern.weight_masks(self.keep)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from the values that `progress` returned."""
        self.keep, self.scheduled_keep, self.requested = state["keep"], state["condemned_keep"], state["asked"]
        initial = state["initial"]
        target = max(self.schedule.target, initial) if self.is_locked else self.schedule.target
        self.schedule = replace(self.schedule, initial=initial, target=target)

    def progress(self) -> dict[str, Any]:
        """Return all values that change from step to step."""
        return {
            "keep": self.keep,
            "condemned_keep": self.scheduled_keep,
            "asked": self.requested,
            "initial": self.schedule.initial,
        }

    def reads_scores(self, step: int) -> bool:
        """Whether `advance` will read scores after `step` steps."""
        return not self.is_locked and self.schedule.is_update(step)

    def ranks_at_start(self) -> bool:
        """Whether an update before the first step ranks units, because it prunes some or schedules them."""
        if self.is_locked or not self.schedule.is_update(0):
            return False
        return (
            self.schedule.find_scheduled_update(0) not in (None, 0) or self.schedule.sparsity(0) > self.schedule.initial
        )

    def changes_masks(self, step: int) -> bool:
        """Whether masks are due to change after `step` steps."""
        if self.is_locked:
            return False
        return self.schedule.find_part(step) is not None or self.schedule.is_update(step)

    def next_change(self, step: int) -> int | None:
        """Return the first step after `step` at which masks may change, or ``None`` if they are final."""
        if self.is_locked or step >= self.schedule.last_change:
            return None
        if self.config.kind != "progressive":
            return self.schedule.next_update(step)
        return next(later for later in range(step + 1, self.schedule.last_change + 1) if self.changes_masks(later))

    def _advance_progressively(self, step: int, stream: Stream, masks: Mapping[str, Array]) -> dict[str, Array] | None:
        if self.schedule.is_update(step):
            requested, later = self.schedule.sparsity(step), None
            keep = self.scheduled_keep or self._select(requested, stream, self.keep)
            if step < self.schedule.end:
                later = self._select(self.schedule.sparsity(self.schedule.next_update(step)), stream, keep)
            # Assigned together, so that an error in either selection changes nothing.
            self.keep, self.scheduled_keep, self.requested = keep, later, requested
            return self.pattern.weight_masks(keep)
        part = self.schedule.find_part(step)
        assert part is not None
        assert self.keep is not None
        assert self.scheduled_keep is not None
        return self._interpolate_all(masks, (self.keep, self.scheduled_keep), part, stream)

    def _advance_in_later_parts(self, step: int, stream: Stream, masks: Mapping[str, Array]) -> dict[str, Array] | None:
        """Select units at updates, and prune them in parts from then on; see `RunOptions.parts_until`."""
        keep, later, requested = self.keep, self.scheduled_keep, self.requested
        if self.schedule.is_update(step):
            if later is not None:
                keep, requested = later, self._find_requested(step - 1)
            later = self._select(self.schedule.sparsity(step), stream, keep)
            keep = keep or {name: kept | ~kept for name, kept in later.items()}
        part = self.schedule.find_part(step)
        if part is None or keep is None or later is None:
            return None
        if part[0] < part[1]:
            whole = self.pattern.weight_masks(keep)  # at an update, some parts of the one before may remain
            current = {layer: mask & masks[layer] for layer, mask in whole.items()} if masks else whole
            changed = self._interpolate_all(current, (keep, later), part, stream)
        else:
            keep, later, requested = later, None, self._find_requested(step)
            changed = self.pattern.weight_masks(keep)
        self.keep, self.scheduled_keep, self.requested = keep, later, requested
        return changed

    def _find_requested(self, step: int) -> float:
        """Return the sparsity of the last update up to `step`."""
        last = self.schedule.last_update(step)
        return self.schedule.initial if last is None else self.schedule.sparsity(last)

    def _interpolate_all(
        self,
        masks: Mapping[str, Array],
        between: tuple[Mapping[str, Array], Mapping[str, Array]],
        part: tuple[int, int],
        stream: Stream,
    ) -> dict[str, Array]:
        selected = self.pattern.interpolate_masks(lambda name: stream(name, between[0]), between, part)
        if selected is not None:
            return selected
        now, then = (self.pattern.expand_units(keep) for keep in between)
        return {layer: self._interpolate(layer, masks[layer], (now[layer], then[layer]), part) for layer in now}

    def _interpolate(self, layer: str, mask: Array, between: tuple[Array, Array], part: tuple[int, int]) -> Array:
        """Interpolate the mask of a layer. Equal weights are pruned in the same order in every framework."""
        view = self.pattern.views[layer]
        weight = view.to_canonical(self._read_weight(layer))
        peers = self.pattern.weight_peers.get(layer)
        return view.to_stored(interpolate_mask(weight, view.to_canonical(mask), between, part, peers))

    def _select(self, sparsity: float, stream: Stream, alive: Mapping[str, Array] | None) -> dict[str, Array]:
        keep = self.pattern.select({name: stream(name, alive) for name in self.pattern.units}, sparsity)
        upper = self.pattern.budget.upper_bounds()
        for name, kept in keep.items():
            units = self.pattern.units[name]
            if units.add(count_true(~kept)) >= upper[name] and self.pattern.budget.units[name] == units.total:
                self.pattern.keep_mask_layers.setdefault(name, REACHED)
        return keep

    def _initial_units(self) -> dict[str, Array] | None:
        if not self.config.keep_zeros:
            return None
        modules = {layer: self.pattern.modules[layer] for layer in self.pattern.views}
        return self.pattern.find_nonzero_units(
            {layer: self.pattern.framework.read_weight(module) != 0 for layer, module in modules.items()}
        )

    def _is_within_target(self) -> bool:
        """Whether the initial sparsity is at most the target, or exceeds it by at most `TOLERATED`.

        Pruned units stay pruned, so a run that starts above its target ends with its initial sparsity.
        """
        if self.is_locked:
            return True
        # Rounding to whole units may put the sparsity of a pruned model above the target.
        excess = self._count_pruned() - self.pattern.count_pruned_units(self.pattern.target_sparsity)
        if excess <= 0:
            return True
        if excess > TOLERATED * sum(units.total for units in self.pattern.units.values()):
            return False
        logger.warning(
            "The model starts with %.4f %% of its units zero, slightly more than target_sparsity=%s. They stay pruned, "
            "and this share is the new target of %s.",
            100 * self.sparsity(),
            self.pattern.target_sparsity,
            self.config.pattern,
        )
        return True

    def _count_pruned(self) -> int:
        return sum(self.pattern.units[name].add(count_true(~kept)) for name, kept in (self.keep or {}).items())

    def _read_weight(self, layer: str) -> Array:
        return self.pattern.framework.to_array(self.pattern.framework.read_weight(self.pattern.modules[layer]))


def interpolate_mask(
    weight: Array, mask: Array, between: tuple[Array, Array], part: tuple[int, int], peers: Peers | None = None
) -> Array:
    """Interpolate between two masks, pruning the smallest scheduled weights first.

    Args:
        weight: Weights of one layer.
        mask: The current mask, in the shape of the weight. Weights that it prunes stay pruned.
        between: The masks of the last and of the next update. The second prunes every weight that the first prunes.
        part: Number of parts of the scheduled weights to prune, and number of all parts, which have equal size.
        peers: The processes that hold the weights, if this one holds a part of them.

    Returns:
        Booleans in the weight's shape: the first mask without the smallest scheduled weights.

    Examples:
        >>> import numpy as np
        >>> weight, dense = np.array([3.0, 1.0, 2.0, 4.0]), np.ones(4, dtype=bool)
        >>> target = np.array([True, False, False, False])
        >>> interpolate_mask(weight, dense, (dense, target), (2, 3))
        array([ True, False, False,  True])
    """
    xp = namespace(weight)
    now, later = between
    scheduled = now & ~later
    size = xp.where(scheduled, xp.abs(weight), xp.asarray(math.inf, dtype=weight.dtype)).reshape((-1,))
    count = size.shape[0] if peers is None else peers.count
    scores = Scores("", lambda: iter([size]), count, mask.reshape((-1,)), peers=peers)
    pruned = scores.add(count_true(~now)) + scores.add(count_true(scheduled)) * part[0] // part[1]
    return keep_above(scores, find_cuts({"": scores}, {"": pruned})[""]).reshape(weight.shape)
