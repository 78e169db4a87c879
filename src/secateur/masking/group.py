"""The layers of one pattern on their way through a run: which units live after which step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from secateur._array import Array, count_true
from secateur.masking.fade import fade
from secateur.masking.timeline import Timeline
from secateur.patterns import BasePattern
from secateur.patterns.selection import Scores

__all__ = ["REACHED", "PruningGroup"]

logger = logging.getLogger(__name__)

REACHED = "reached max_sparsity_ratio_per_op"
"""Why the mask of a layer is not updated any more, where nobody said so."""

TOLERATED = 0.01
"""Share of all units by which a model may start sparser than its target, as when units died by themselves."""

Stream = Callable[[str, Mapping[str, Array] | None], Scores]
"""Name of units and what is alive of all units → the scores to rank them by."""


class PruningGroup:
    """Decides masks; knows nothing of optimizers.

    Args:
        pattern: The pattern, bound to the layers.
        is_new: Whether it starts with the weights as they are, rather than from a state that is yet to be read.

    Attributes:
        pattern: The pattern.
        timeline: When masks change.
        keep: Name of units → one boolean per unit: what lives now; ``None``: everything.
        asked: The sparsity that `keep` was made for.
        condemned_keep: In a progressive run, what will be left once the condemned units have faded out.
    """

    def __init__(self, pattern: BasePattern, *, is_new: bool = True) -> None:
        self.pattern = pattern
        self.config = pattern.config
        self.keep: dict[str, Array] | None = self._initial_units() if is_new else None
        self.condemned_keep: dict[str, Array] | None = None
        initial, target = self.sparsity(), pattern.target_sparsity
        if self.is_locked:
            target = max(target, initial)
        self.timeline = Timeline(self.config, min(initial, target) if self._is_within_target() else initial, target)
        self.asked = self.timeline.initial

    @property
    def is_locked(self) -> bool:
        """Whether masks never change."""
        return self.config.kind == "pattern_lock"

    def sparsity(self) -> float:
        """Share of units that do not live."""
        return self._pruned_units() / sum(units.count for units in self.pattern.units.values())

    def initial_masks(self) -> dict[str, Array]:
        """Masks before the first step, in the weights' stored shapes."""
        if self.is_locked:
            return {layer: self._stored_weight(layer) != 0 for layer in self.pattern.views}
        return {} if self.keep is None else self.pattern.weight_masks(self.keep)

    def advance(self, step: int, stream: Stream, masks: Mapping[str, Array]) -> dict[str, Array] | None:
        """Masks as they are after `step` steps; ``None`` where they stay as they were.

        Args:
            step: Steps made.
            stream: Where scores come from.
            masks: Masks as they are now, in the weights' stored shapes; empty before the first update.

        Raises:
            ScoreError: A score is ``nan``.
        """
        if self.is_locked:
            return None
        if self.config.kind == "progressive":
            return self._advance_progressively(step, stream, masks)
        if not self.timeline.is_update(step):
            return None
        asked = self.timeline.sparsity(step)
        self.keep, self.asked = self._select(asked, stream, self.keep), asked
        return self.pattern.weight_masks(self.keep)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `progress` returned."""
        self.keep, self.condemned_keep, self.asked = state["keep"], state["condemned_keep"], state["asked"]
        initial = state["initial"]
        target = max(self.timeline.target, initial) if self.is_locked else self.timeline.target
        self.timeline = replace(self.timeline, initial=initial, target=target)

    def progress(self) -> dict[str, Any]:
        """All that changes from step to step."""
        return {
            "keep": self.keep,
            "condemned_keep": self.condemned_keep,
            "asked": self.asked,
            "initial": self.timeline.initial,
        }

    def reads_scores(self, step: int) -> bool:
        """Whether `advance` will read scores after `step` steps."""
        return not self.is_locked and self.timeline.is_update(step)

    def changes_masks(self, step: int) -> bool:
        """Whether masks are due to change after `step` steps."""
        if self.is_locked:
            return False
        is_fading = self.config.kind == "progressive" and self._part_faded(step) is not None
        return is_fading or self.timeline.is_update(step)

    def next_change(self, step: int) -> int | None:
        """The first step after `step` at which masks may change; ``None``: they do not any more."""
        if self.is_locked or step >= self.timeline.end:
            return None
        update = self.timeline.next_update(step)
        if self.config.kind != "progressive":
            return update
        return next((later for later in range(step + 1, update) if self._part_faded(later)), update)

    def _advance_progressively(self, step: int, stream: Stream, masks: Mapping[str, Array]) -> dict[str, Array] | None:
        if self.timeline.is_update(step):
            asked, later = self.timeline.sparsity(step), None
            keep = self.condemned_keep or self._select(asked, stream, self.keep)
            if step < self.timeline.end:
                later = self._select(self.timeline.sparsity(self.timeline.next_update(step)), stream, keep)
            # Taken over together, so that an error in either selection leaves all as it was.
            self.keep, self.condemned_keep, self.asked = keep, later, asked
            return self.pattern.weight_masks(keep)
        part = self._part_faded(step)
        if part is None or self.keep is None or self.condemned_keep is None:
            return None
        now, then = self._expanded(self.keep), self._expanded(self.condemned_keep)
        return {layer: self._faded(layer, masks[layer], (now[layer], then[layer]), part) for layer in now}

    def _faded(self, layer: str, mask: Array, between: tuple[Array, Array], part: tuple[int, int]) -> Array:
        """A mask part of the way; of weights of one size the same go in every framework, however it stores them."""
        view = self.pattern.views[layer]
        weight = view.canonical(self._stored_weight(layer))
        return view.stored(fade(weight, view.canonical(mask), between, part))

    def _expanded(self, keep: Mapping[str, Array]) -> dict[str, Array]:
        """From one boolean per unit to one per weight, as (O, K, I) arrays."""
        return {
            layer: mask for name, kept in keep.items() for layer, mask in self.pattern.units[name].expand(kept).items()
        }

    def _part_faded(self, step: int) -> tuple[int, int] | None:
        """How many of how many parts of the condemned weights are gone after `step`; ``None`` between parts."""
        start, parts = self.config.start_step, self.config.progressive_steps
        if not start < step < self.timeline.end:
            return None
        last = self.timeline.last_update(step)
        assert last is not None
        length = self.timeline.next_update(last) - last
        done = {round(part * length / parts): part for part in range(1, parts)}
        return (done[step - last], parts) if step - last in done else None

    def _select(self, sparsity: float, stream: Stream, alive: Mapping[str, Array] | None) -> dict[str, Array]:
        keep = self.pattern.select({name: stream(name, alive) for name in self.pattern.units}, sparsity)
        upper = self.pattern.budget.upper()
        for name, kept in keep.items():
            pruned = count_true(~kept)
            if pruned >= upper[name] and self.pattern.budget.units[name] == kept.shape[0]:
                self.pattern.keep_mask_layers.setdefault(name, REACHED)
        return keep

    def _initial_units(self) -> dict[str, Array] | None:
        if not self.config.keep_zeros:
            return None
        modules = {layer: self.pattern.modules[layer] for layer in self.pattern.views}
        return self.pattern.units_without_zeros(
            {layer: self.pattern.framework.read_weight(module) != 0 for layer, module in modules.items()}
        )

    def _is_within_target(self) -> bool:
        """Whether what is pruned at the start is the target or so little more that the run can go on from there.

        Selection never revives a unit, so the run then ends with what is pruned already.
        """
        if self.is_locked:
            return True
        # A model that reached the target may exceed it by what rounding to whole units added.
        excess = self._pruned_units() - self.pattern.pruned_units(self.pattern.target_sparsity)
        if excess <= 0:
            return True
        if excess > TOLERATED * sum(units.count for units in self.pattern.units.values()):
            return False
        logger.warning(
            "The model starts with %.4f %% of its units zero, a little more than target_sparsity=%s. They stay pruned: "
            "that share is the target of %s from now on.",
            100 * self.sparsity(),
            self.pattern.target_sparsity,
            self.config.pattern,
        )
        return True

    def _pruned_units(self) -> int:
        return sum(count_true(~kept) for kept in (self.keep or {}).values())

    def _stored_weight(self, layer: str) -> Array:
        return self.pattern.framework.to_array(self.pattern.framework.read_weight(self.pattern.modules[layer]))
