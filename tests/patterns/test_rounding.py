"""Numbers of pruned units that groups allow, against brute force."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ScoreError
from secateur.graph import AffineMap, Constraints, Group, Member, Role
from secateur.patterns.budget import Budget
from secateur.patterns.rounding import KeepRule, RankedUnits, choose_counts
from secateur.patterns.selection import Scores, find_global_cuts


@st.composite
def rules(draw: st.DrawFn) -> KeepRule:
    parts = draw(st.integers(1, 3))
    units = parts * draw(st.integers(1, 8))
    step = parts * draw(st.integers(1, 5))
    return KeepRule(units=units, step=step, minimum=draw(st.integers(1, 4)), parts=parts)


def list_possible(rule: KeepRule) -> list[int]:
    kept = {rule.units} | {kept for kept in range(rule.step, rule.units, rule.step) if kept >= rule.minimum}
    return sorted(rule.units - count for count in kept)


@given(rule=rules(), count=st.integers(0, 30))
def test_numbers_are_rounded_to_possible_ones(rule: KeepRule, count: int) -> None:
    possible = list_possible(rule)
    assert rule.maximum == possible[-1]
    assert rule.round_down(count) == max(one for one in possible if one <= count)
    assert rule.round_up(count) == min((one for one in possible if one >= count), default=possible[-1])
    assert rule.round_nearest(count) == min(possible, key=lambda one: (abs(one - count), one))


@given(rule=rules(), count=st.integers(0, 24))
def test_rules_agree_with_the_constraints_of_groups(rule: KeepRule, count: int) -> None:
    weight = Member(
        parameter="w", shape=(rule.units, 1), axis=0, index_map=AffineMap(units=rule.units), role=Role.PRODUCER
    )
    limits = Constraints(multiple=rule.step, equal_parts=rule.parts, minimum=rule.minimum)
    group = Group(units=rule.units, members=(weight,), constraints=limits)
    count = min(count, rule.units)
    assert rule.units - rule.round_nearest(count) == group.count_kept(count)


def rank(values: list[float], rule: KeepRule, alive: list[bool] | None = None) -> RankedUnits:
    scores, flags = np.array(values, dtype=np.float32), None if alive is None else np.array(alive)
    return RankedUnits(Scores("g", lambda: iter([scores]), len(scores), flags), rule)


def draw_groups(data: st.DataObject, found: list[KeepRule]) -> list[list[float]]:
    return [data.draw(st.lists(st.integers(0, 9), min_size=rule.units, max_size=rule.units)) for rule in found]


@given(found=st.lists(rules(), min_size=1, max_size=3), data=st.data(), share=st.floats(0, 1))
def test_the_total_is_near(found: list[KeepRule], data: st.DataObject, share: float) -> None:
    total = round(share * sum(rule.units for rule in found))
    groups = [rank(*pair) for pair in zip(draw_groups(data, found), found, strict=True)]
    counts = choose_counts(groups, total, [(0, rule.maximum) for rule in found])
    for count, rule in zip(counts, found, strict=True):
        assert count in list_possible(rule)
    steps = [
        following - count
        for rule, count in zip(found, counts, strict=True)
        for following in (*list_possible(rule), count)
        if following > count
    ]
    if sum(counts) < total:  # every further step is farther from the total
        assert all(abs(sum(counts) + step - total) >= total - sum(counts) for step in steps)
    assert abs(sum(counts) - total) <= max(rule.step for rule in found) or not steps


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data(), share=st.floats(0, 0.8))
def test_equal_steps_come_as_near_as_possible(sizes: list[int], data: st.DataObject, share: float) -> None:
    found = [KeepRule(units=4 * size, step=4) for size in sizes]
    total = round(share * 4 * sum(sizes))
    groups = [rank(*pair) for pair in zip(draw_groups(data, found), found, strict=True)]
    counts = choose_counts(groups, total, [(0, rule.maximum) for rule in found])
    reachable = range(0, sum(rule.maximum for rule in found) + 1, 4)
    assert abs(sum(counts) - total) == min(abs(one - total) for one in reachable)


@given(units=st.lists(st.integers(1, 6), min_size=1, max_size=4), data=st.data(), share=st.floats(0, 1))
def test_steps_of_one_equal_the_ranking_of_single_units(units: list[int], data: st.DataObject, share: float) -> None:
    found = [KeepRule(units=count) for count in units]
    values = draw_groups(data, found)
    total = min(round(share * sum(units)), sum(rule.maximum for rule in found))
    counts = choose_counts(
        [rank(*pair) for pair in zip(values, found, strict=True)], total, [(0, rule.maximum) for rule in found]
    )
    streams = {
        str(index): Scores(str(index), lambda one=one: iter([np.array(one, dtype=np.float32)]), len(one))
        for index, one in enumerate(values)
    }
    upper = {str(index): rule.maximum for index, rule in enumerate(found)}
    cuts = find_global_cuts(streams, total, dict.fromkeys(streams, 0), upper)
    assert counts == [cut.pruned for cut in cuts.values()]


def test_what_rounding_spares_is_chosen_by_score() -> None:
    rule = KeepRule(units=8, step=4)
    low, high = [1.0] * 4 + [9.0] * 4, [2.0] * 4 + [9.0] * 4
    bounds = [(0, 4), (0, 4)]
    assert choose_counts([rank(high, rule), rank(low, rule)], 5, bounds) == [0, 4]
    assert choose_counts([rank(low, rule), rank(high, rule)], 5, bounds) == [4, 0]
    assert choose_counts([rank(low, rule), rank(high, rule)], 7, bounds) == [4, 4]
    assert choose_counts([rank(low, rule), rank(low, rule)], 5, bounds) == [0, 4]  # later groups first


def test_the_smallest_step_that_exceeds_the_total_is_taken_if_it_is_nearer() -> None:
    wide, narrow = KeepRule(units=12, step=6), KeepRule(units=8, step=4)
    groups = [rank([1.0] * 12, wide), rank([5.0] * 8, narrow)]
    bounds = [(0, 6), (0, 4)]
    assert choose_counts(groups, 1, bounds) == [0, 0]
    assert choose_counts(groups, 2, bounds) == [0, 0]  # as near as 4, and more is kept
    assert choose_counts(groups, 3, bounds) == [0, 4]
    assert choose_counts(groups, 6, bounds) == [6, 0]
    assert choose_counts(groups, 9, bounds) == [6, 4]


@given(rule=rules(), data=st.data())
def test_each_part_keeps_its_best(rule: KeepRule, data: st.DataObject) -> None:
    (values,) = draw_groups(data, [rule])
    alive = data.draw(st.lists(st.booleans(), min_size=rule.units, max_size=rule.units))
    ranked = rank(values, rule, alive)
    for count in list_possible(rule):
        if count < ranked.pruned:
            continue
        keep = ranked.select(count).reshape(rule.parts, -1)
        order = np.array(values).reshape(rule.parts, -1)
        living = np.array(alive).reshape(rule.parts, -1)
        for part, scores, flags in zip(keep, order, living, strict=True):
            best = sorted(range(len(part)), key=lambda at: (not flags[at], -scores[at], at))
            assert set(np.flatnonzero(part)) == set(best[: (rule.units - count) // rule.parts])


def test_scores_that_are_nan_are_refused() -> None:
    with pytest.raises(ScoreError, match="layer 'g': scores must be numbers, found nan"):
        rank([1.0, float("nan")], KeepRule(units=2))


def make_budget(target: float, rules: dict[str, KeepRule], **settings: Any) -> Budget:
    from fractions import Fraction

    bounds: dict[str, Any] = {"at_least": 0.0, "at_most": 1.0, "is_global": False} | settings
    units = {name: rule.units for name, rule in rules.items()}
    return Budget(units=units, unit_share=Fraction(1), target=target, rules=rules, **bounds)


@given(rule=rules(), target=st.floats(0, 1), share=st.floats(0, 1), low=st.floats(0, 1), high=st.floats(0, 1))
def test_local_numbers_are_possible_and_within_the_bounds(
    rule: KeepRule, target: float, share: float, low: float, high: float
) -> None:
    low, target, high = sorted([low, target, high])
    count = round(target * rule.units)
    if not -(-low * rule.units // 1) <= count <= high * rule.units // 1:
        return
    budget = make_budget(target, {"g": rule}, at_least=low, at_most=high)
    possible = list_possible(rule)
    within = [one for one in possible if low * rule.units <= one <= high * rule.units]
    found = budget.count_locally("g", target)
    assert found in possible
    assert found <= high * rule.units
    if within:
        assert found == min(within, key=lambda one: (abs(one - count), one))
    earlier = budget.count_locally("g", share * target)
    assert earlier in possible
    assert earlier <= found or not within
    assert budget.find_ranges()["g"] == (found, found)


def test_at_least_one_unit_stays() -> None:
    assert make_budget(0.9, {"g": KeepRule(units=4)}).count_locally("g", 0.9) == 3
    assert make_budget(0.9, {"g": KeepRule(units=1)}).count_locally("g", 0.9) == 0
    assert make_budget(0.9, {"g": KeepRule(units=12, step=8)}).count_locally("g", 0.9) == 4
