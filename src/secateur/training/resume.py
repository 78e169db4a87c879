"""Check that a run can resume from a saved state: its steps, sparsity, units and masks must agree."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

from secateur._array import Array, count_true
from secateur._wording import format_list, format_value
from secateur.config import REGROW_FRACTION, SR_STE_DECAY
from secateur.errors import ConfigError, StateError
from secateur.masking.regrowth import RegrowthUpdater
from secateur.masking.update_schedule import UpdateSchedule
from secateur.masking.updater import MaskUpdater
from secateur.schedules import SCHEDULES

__all__ = ["FORMAT_VERSION", "SavedProgress", "describe_key", "find_problem", "refuse_other_runs", "refuse_other_state"]


FORMAT_VERSION = 1
"""Format version of the states of pruners."""

ROUNDING = 1e-9
"""Tolerance for sparsities that were computed on different machines."""


NEW_KEYS = {
    "granularity": 1,
    "allow_inexact": False,
    "regrow_fraction": REGROW_FRACTION,
    "sr_ste_decay": SR_STE_DECAY,
    "sparsity_distribution": None,
}
"""Keys of configurations that states of earlier versions lack → the values that these versions had."""

NO_MAXIMUM = 1.0
"""``max_sparsity_ratio_per_op`` in states of versions that had no default maximum. Such a run continues without one."""


class SavedProgress(NamedTuple):
    """The saved progress of the layers of one pattern, as NumPy arrays.

    Attributes:
        step: Step up to which masks are updated.
        masks: Layer → mask in the shape of the weight; empty: nothing is pruned yet.
        keep: See `MaskUpdater.keep`.
        scheduled_keep: See `MaskUpdater.scheduled_keep`.
        requested: See `MaskUpdater.requested`; ``None``: not saved, because it follows from the step.
        initial: Sparsity before the first update.
        frozen: Names of units, or of layers, whose masks no longer change.
    """

    step: int
    masks: Mapping[str, Array]
    keep: Mapping[str, Array] | None
    scheduled_keep: Mapping[str, Array] | None
    requested: float | None
    initial: float
    frozen: Collection[str]


def find_problem(updater: MaskUpdater, saved: SavedProgress) -> str | None:
    """Find the first contradiction in a saved state, for an error message; ``None``: the state is valid.

    Args:
        updater: The updater that resumes from the state.
        saved: The saved progress, whose names and shapes have been checked.
    """
    if updater.is_locked:
        return next(_problems_of_lock(saved, keeps_zeros=updater.config.keep_zeros), None)
    try:
        schedule = replace(updater.schedule, initial=saved.initial)
    except ConfigError:
        return f"progress.initial is {saved.initial}, more than the target {updater.schedule.target}"
    return next(_problems(updater, saved, schedule), None)


def _problems_of_lock(saved: SavedProgress, *, keeps_zeros: bool) -> Iterator[str]:
    if (saved.keep is not None) != keeps_zeros or saved.scheduled_keep is not None:
        yield "progress.keep and progress.condemned_keep must be as they were when the zeros were locked"
    if not saved.masks:
        yield "masks must be present if zeros are locked"
    if saved.requested not in (None, saved.initial):
        yield "progress.asked and progress.initial must agree"


def _problems(updater: MaskUpdater, saved: SavedProgress, schedule: UpdateSchedule) -> Iterator[str]:
    last = schedule.last_update(saved.step)
    if saved.initial and not updater.config.keep_zeros:
        yield f"progress.initial must be 0 without keep_zeros, found {saved.initial}"
    is_known = updater.config.sparsity_decay_type in SCHEDULES  # a function may return a different value each time
    whole, scheduled = schedule.find_kept_update(saved.step), schedule.find_scheduled_update(saved.step)
    requested = schedule.sparsity(whole) if whole is not None and is_known else saved.initial
    is_fixed = last is None or is_known
    if is_fixed and saved.requested is not None and not math.isclose(saved.requested, requested, abs_tol=ROUNDING):
        yield f"progress.asked must be {requested} after step {saved.step}, found {saved.requested}"
    if (saved.keep is None) != (last is None and not updater.config.keep_zeros):
        yield f"progress.keep must {'not ' if last is None else ''}be present after step {saved.step}"
    if bool(saved.masks) != (saved.keep is not None):
        yield "masks and progress.keep must both be present, or neither"
    if (saved.scheduled_keep is None) != (scheduled is None):
        yield f"progress.condemned_keep must {'not ' if scheduled is None else ''}be present after step {saved.step}"
    if saved.keep is not None:
        yield from _problems_of_masks(updater, saved, saved.keep, schedule)
        if last is not None and is_known:
            yield from _problems_of_counts(updater, saved.keep, requested, saved.frozen)
    if saved.scheduled_keep is not None and scheduled is not None and is_known:
        yield from _problems_of_counts(updater, saved.scheduled_keep, schedule.sparsity(scheduled), saved.frozen)


def _problems_of_masks(
    updater: MaskUpdater, saved: SavedProgress, keep: Mapping[str, Array], schedule: UpdateSchedule
) -> Iterator[str]:
    now = updater.pattern.weight_masks(keep)
    later = now if saved.scheduled_keep is None else updater.pattern.weight_masks(saved.scheduled_keep)
    part, parts = schedule.count_parts(saved.step), schedule.config.progressive_steps
    for layer, mask in saved.masks.items():
        if count_true(mask & ~now[layer]) or count_true(later[layer] & ~mask):
            yield f"masks of {layer!r} do not match progress"
        scheduled = count_true(now[layer]) - count_true(later[layer])
        expected = count_true(now[layer]) - scheduled * part // parts
        if count_true(mask) != expected:
            yield f"masks of {layer!r} must keep {expected} weights, found {count_true(mask)}"


def _problems_of_counts(
    updater: MaskUpdater, keep: Mapping[str, Array], sparsity: float, frozen: Collection[str]
) -> Iterator[str]:
    """Find numbers of pruned units that differ from those that the schedule requests, unless these were impossible."""
    pattern, pruned = updater.pattern, {name: count_true(~kept) for name, kept in keep.items()}
    weights_per_unit = {
        name: pattern.budget.unit_share * Fraction(units.count, pattern.budget.units[name])
        for name, units in pattern.units.items()
    }
    upper = {name: maximum * weights_per_unit[name] for name, maximum in pattern.budget.upper_bounds().items()}
    if updater.config.keep_zeros:
        return
    for name, count in pruned.items():
        if count > upper[name]:
            yield f"at most {upper[name]} units of {name!r} may be pruned, found {count}"
    if any(
        not {name, *units.parts}.isdisjoint(frozen) and pruned[name] < upper[name]
        for name, units in pattern.units.items()
    ):
        return
    if wrong := pattern.violations(pattern.weight_masks(keep), sparsity):
        layer, reason = next(iter(wrong.items()))
        yield f"layer {layer!r}: {reason}"
    expected = pattern.count_pruned_units(sparsity)
    if abs(sum(pruned.values()) - expected) > (pattern.budget.tolerance if pattern.is_global else 0):
        yield f"{expected} units must be pruned, found {sum(pruned.values())}"
    if isinstance(updater, RegrowthUpdater):
        yield from _problems_of_regrowth(updater, pruned, weights_per_unit)
    for name, count in pruned.items():
        expected_here = pattern.budget.count_locally(name, sparsity) * weights_per_unit[name]
        if not pattern.is_global and count != expected_here:
            yield f"{expected_here} units of {name!r} must be pruned, found {count}"


def _problems_of_regrowth(
    updater: RegrowthUpdater, pruned: Mapping[str, int], weights_per_unit: Mapping[str, Fraction]
) -> Iterator[str]:
    """Find layers whose number of kept units has changed since the first step."""
    for name, count in updater.counts.items():
        if pruned[name] != (expected := count * weights_per_unit[name]):
            yield f"{expected} units of {name!r} must be pruned, found {pruned[name]}"


def refuse_other_state(saved: Mapping[str, Any], current: Sequence[Mapping[str, Any]]) -> None:
    """Raise `StateError` if a state has another format or belongs to other runs; see `refuse_other_runs`."""
    if saved["format_version"] != FORMAT_VERSION:
        raise StateError(
            f"The state is of format {saved['format_version']}, this version reads format {FORMAT_VERSION}."
        )
    refuse_other_runs(saved["runs"], current)


def refuse_other_runs(saved: Sequence[Mapping[str, Any]], current: Sequence[Mapping[str, Any]]) -> None:
    """Raise `StateError` if a state belongs to other runs, which are described by their ``shapes`` and ``config``."""
    if len(saved) != len(current):
        raise StateError(f"The state is of a run with {len(saved)} patterns, this one has {len(current)}.")
    for theirs, ours in zip(saved, current, strict=True):
        if differing := _find_differences(theirs["shapes"], ours["shapes"]):
            raise StateError(
                "The state is of another model. Layers that differ in name or shape: "
                f"{format_list(map(format_value, differing))}. Load it into the model that it was saved with."
            )
        if keys := _find_config_differences(theirs["config"], ours["config"]):
            changes = "; ".join(
                f"{describe_key(key)} was {format_value(theirs['config'].get(key))}, "
                f"is {format_value(ours['config'].get(key))}"
                for key in keys
            )
            raise StateError(f"The state is of a run with another configuration: {changes}.")


def _find_differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*theirs, *mine} if theirs.get(key) != mine.get(key))


def _find_config_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    key = "max_sparsity_ratio_per_op"
    if ours.get(key) is None and theirs.get(key) == NO_MAXIMUM:
        ours = {**ours, key: NO_MAXIMUM}
    return _find_differences(NEW_KEYS | dict(theirs), ours)


def describe_key(key: Any) -> str:
    """Format a key for an error message."""
    return format_value(key).strip("'\"")
