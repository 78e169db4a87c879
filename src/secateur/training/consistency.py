"""Whether what a saved state says of a run fits together: steps, sparsity, units and masks. Knows no framework."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

from secateur._array import Array, count_true
from secateur.errors import ConfigError
from secateur.masking.group import PruningGroup
from secateur.masking.timeline import Timeline
from secateur.schedules import SCHEDULES

__all__ = ["SavedProgress", "find_problem"]

ROUNDING = 1e-9
"""Difference of two sparsities that another machine's arithmetic may make."""


class SavedProgress(NamedTuple):
    """What a state says of one pattern's layers, as NumPy arrays.

    Attributes:
        step: Steps that masks have followed.
        masks: Layer → mask in the weight's shape; empty: nothing is pruned yet.
        keep: See `PruningGroup.keep`.
        condemned_keep: See `PruningGroup.condemned_keep`.
        asked: See `PruningGroup.asked`; ``None``: not saved, for it follows from the step.
        initial: Sparsity before the first update.
        frozen: Names of units, or of layers, whose masks stay as they are.
    """

    step: int
    masks: Mapping[str, Array]
    keep: Mapping[str, Array] | None
    condemned_keep: Mapping[str, Array] | None
    asked: float | None
    initial: float
    frozen: Collection[str]


def find_problem(group: PruningGroup, saved: SavedProgress) -> str | None:
    """The first thing that does not fit together, for an error message; ``None``: a run can have been there.

    Args:
        group: The group that is to go on from there.
        saved: What was saved; names and shapes have been checked.
    """
    if group.is_locked:
        return next(_problems_of_lock(saved, keeps_zeros=group.config.keep_zeros), None)
    try:
        timeline = replace(group.timeline, initial=saved.initial)
    except ConfigError:
        return f"progress.initial is {saved.initial}, more than the target {group.timeline.target}"
    return next(_problems(group, saved, timeline), None)


def _problems_of_lock(saved: SavedProgress, *, keeps_zeros: bool) -> Iterator[str]:
    if (saved.keep is not None) != keeps_zeros or saved.condemned_keep is not None:
        yield "progress.keep and progress.condemned_keep must be as they were when the zeros were locked"
    if not saved.masks:
        yield "masks must be there where zeros are locked"
    if saved.asked not in (None, saved.initial):
        yield "progress.asked and progress.initial must agree"


def _problems(group: PruningGroup, saved: SavedProgress, timeline: Timeline) -> Iterator[str]:
    last = timeline.last_update(saved.step)
    if saved.initial and not group.config.keep_zeros:
        yield f"progress.initial must be 0 without keep_zeros, found {saved.initial}"
    is_known = group.config.sparsity_decay_type in SCHEDULES  # a function may return something else each time
    asked = timeline.sparsity(last) if last is not None and is_known else saved.initial
    is_fixed = last is None or is_known
    if is_fixed and saved.asked is not None and not math.isclose(saved.asked, asked, abs_tol=ROUNDING):
        yield f"progress.asked must be {asked} after step {saved.step}, found {saved.asked}"
    if (saved.keep is None) != (last is None and not group.config.keep_zeros):
        yield f"progress.keep must {'not ' if last is None else ''}be there after step {saved.step}"
    if bool(saved.masks) != (saved.keep is not None):
        yield "masks and progress.keep must both be there, or neither"
    is_fading = group.config.kind == "progressive" and last is not None and saved.step < timeline.end
    if (saved.condemned_keep is not None) != is_fading:
        yield f"progress.condemned_keep must {'' if is_fading else 'not '}be there after step {saved.step}"
    if saved.keep is not None:
        yield from _problems_of_masks(group, saved, saved.keep, timeline)
        if last is not None and is_known:
            yield from _problems_of_counts(group, saved.keep, asked, saved.frozen)
    if saved.condemned_keep is not None and last is not None and is_known:
        yield from _problems_of_counts(
            group, saved.condemned_keep, timeline.sparsity(timeline.next_update(last)), saved.frozen
        )


def _problems_of_masks(
    group: PruningGroup, saved: SavedProgress, keep: Mapping[str, Array], timeline: Timeline
) -> Iterator[str]:
    now = group.pattern.weight_masks(keep)
    later = now if saved.condemned_keep is None else group.pattern.weight_masks(saved.condemned_keep)
    part, parts = parts_faded(timeline, saved.step)
    for layer, mask in saved.masks.items():
        if count_true(mask & ~now[layer]) or count_true(later[layer] & ~mask):
            yield f"masks of {layer!r} do not prune what progress says"
        condemned = count_true(now[layer]) - count_true(later[layer])
        expected = count_true(now[layer]) - condemned * part // parts
        if count_true(mask) != expected:
            yield f"masks of {layer!r} keep {count_true(mask)} weights, and must keep {expected}"


def _problems_of_counts(
    group: PruningGroup, keep: Mapping[str, Array], sparsity: float, frozen: Collection[str]
) -> Iterator[str]:
    """What is pruned of each scope must be what the schedule asks for; unless it may have been impossible."""
    pattern, pruned = group.pattern, {name: count_true(~kept) for name, kept in keep.items()}
    weights_per_unit = {
        name: pattern.budget.unit_share * Fraction(units.count, pattern.budget.units[name])
        for name, units in pattern.units.items()
    }
    upper = {name: most * weights_per_unit[name] for name, most in pattern.budget.upper().items()}
    if group.config.keep_zeros:
        return
    for name, count in pruned.items():
        if count > upper[name]:
            yield f"{count} units of {name!r} are pruned, and at most {upper[name]} may be"
    if any(
        not {name, *units.parts}.isdisjoint(frozen) and pruned[name] < upper[name]
        for name, units in pattern.units.items()
    ):
        return
    if wrong := pattern.violations(pattern.weight_masks(keep), sparsity):
        layer, reason = next(iter(wrong.items()))
        yield f"layer {layer!r}: {reason}"
    expected = pattern.pruned_units(sparsity)
    if sum(pruned.values()) != expected:
        yield f"{sum(pruned.values())} units are pruned, and {expected} must be"
    for name, count in pruned.items():
        alone = pattern.budget.alone(name, sparsity) * weights_per_unit[name]
        if not pattern.is_global and count != alone:
            yield f"{count} units of {name!r} are pruned, and {alone} must be"


def parts_faded(timeline: Timeline, step: int) -> tuple[int, int]:
    """How many of how many parts of the condemned weights are gone after `step`, in a progressive run."""
    parts, last = timeline.config.progressive_steps, timeline.last_update(step)
    if timeline.config.kind != "progressive" or last is None or step >= timeline.end:
        return 0, parts
    length = timeline.next_update(last) - last
    done = [part for part in range(1, parts) if 1 <= round(part * length / parts) <= step - last]
    return max(done, default=0), parts
