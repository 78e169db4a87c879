"""The multiple-choice knapsack against brute force."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocations.knapsack import WidthFrontier
from secateur.errors import ConfigError, ScoreError

Curves = dict[int, list[tuple[int, float]]]
Tables = dict[int, list[float]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Curves, Tables]:
    """Small problems whose integer costs and losses tie often."""
    curves, tables = {}, {}
    for number in draw(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)):
        points = draw(st.integers(1, 4))
        numbers = st.lists(st.integers(0, 6), min_size=points, max_size=points)
        curves[number] = [(8 - point, float(loss)) for point, loss in enumerate(draw(numbers))]
        tables[number] = [float(cost) for cost in draw(numbers)]
    return curves, tables


def choose_by_brute_force(curves: Curves, tables: Tables, capacity: float) -> dict[int, int] | None:
    """The least loss, then the least cost, then the groups with the smallest numbers keep most."""
    groups = sorted(curves)
    best = None
    for points in product(*(range(len(curves[group])) for group in groups)):
        cost = sum(tables[group][point] for group, point in zip(groups, points, strict=True))
        loss = sum(curves[group][point][1] for group, point in zip(groups, points, strict=True))
        if cost <= capacity:
            best = min(best or (math.inf, 0.0, ()), (loss, cost, points))
    return best and {group: curves[group][point][0] for group, point in zip(groups, best[2], strict=True)}


@given(problems(), st.integers(0, 25))
@settings(max_examples=100, deadline=None)
def test_the_choice_is_that_of_brute_force(problem: tuple[Curves, Tables], capacity: int) -> None:
    expected = choose_by_brute_force(*problem, capacity)
    if expected is None:
        with pytest.raises(ConfigError, match="no choice fits"):
            WidthFrontier(*problem).choose(capacity)
    else:
        assert WidthFrontier(*problem).choose(capacity) == expected


@given(problems())
@settings(max_examples=100, deadline=None)
def test_every_choice_of_the_frontier_costs_and_loses_what_it_says(problem: tuple[Curves, Tables]) -> None:
    curves, tables = problem
    frontier = WidthFrontier(curves, tables)
    assert (np.diff(frontier.costs) > 0).all()
    assert (np.diff(frontier.losses) < 0).all()
    for number in range(len(frontier.costs)):
        points = {
            group: [kept for kept, _ in curves[group]].index(k) for group, k in frontier.get_widths(number).items()
        }
        assert sum(tables[group][point] for group, point in points.items()) == frontier.costs[number]
        assert sum(curves[group][point][1] for group, point in points.items()) == frontier.losses[number]


def make_large_problem(groups: int) -> tuple[Curves, Tables]:
    rng = np.random.default_rng(0)
    curves = {group: [(20 - p, loss) for p, loss in enumerate(np.cumsum(rng.random(20)))] for group in range(groups)}
    tables = {group: [*np.cumsum(rng.random(20))[::-1]] for group in range(groups)}
    return curves, tables


def test_merged_states_lose_no_more_than_the_optimum_of_a_slightly_smaller_capacity() -> None:
    curves, tables = make_large_problem(5)
    exact, merged = WidthFrontier(curves, tables, max_states=10**9), WidthFrontier(curves, tables, max_states=200)
    assert len(merged.costs) <= 200 < len(exact.costs)
    spread = 5 * (exact.costs[-1] - exact.costs[0]) / 199
    for capacity in np.linspace(exact.costs[0] + spread, exact.costs[-1], 50):
        loss = merged.losses[merged.find(capacity)]
        assert exact.losses[exact.find(capacity)] <= loss <= exact.losses[exact.find(capacity - spread)]


def test_the_cheapest_choice_survives_merging() -> None:
    curves, tables = make_large_problem(6)
    frontier = WidthFrontier(curves, tables, max_states=50)
    assert frontier.costs[0] == pytest.approx(sum(table[-1] for table in tables.values()))


def test_of_equal_groups_the_first_keeps_more() -> None:
    curves = {group: [(4, 0.0), (2, 1.0)] for group in (7, 3, 5)}
    assert WidthFrontier(curves, {group: [2, 1] for group in curves}).choose(4) == {3: 4, 5: 2, 7: 2}


@pytest.mark.parametrize(
    ("curve", "table", "error", "message"),
    [
        ([(4, 0.0), (2, 1.0)], [1.0], ConfigError, "curve has 2 points and its table 1"),
        ([], [], ConfigError, "at least one"),
        ([(4, math.nan)], [1.0], ScoreError, "must be finite"),
        ([(4, 0.0)], [math.inf], ScoreError, "must be finite"),
    ],
)
def test_bad_tables(curve: list, table: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WidthFrontier({3: curve}, {3: table})
