"""The search for orders of channels, against brute force."""

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import ConfigError
from secateur.patterns import channel_permutation
from secateur.patterns.channel_permutation import BlockGoal, Goal, NMGoal, search_permutation

Floats = npt.NDArray[np.float64]

GOALS: dict[str, Goal] = {
    "2:4": NMGoal(2, 4),
    "1:4": NMGoal(1, 4),
    "3:4": NMGoal(3, 4),
    "1:2": NMGoal(1, 2),
    "4:8": NMGoal(4, 8),
    "blocks": BlockGoal(4, np.linspace(2, 5, 5).astype(np.float32)),
}
"""Goals for scores with five rows."""


def random_scores(rows: int, channels: int, seed: int = 0) -> Floats:
    return np.abs(np.random.default_rng(seed).standard_normal((rows, channels)))


def kept_by_rows(scores: Floats, goal: Goal) -> float:
    """Return the kept score in the plainest form."""
    kept = 0.0
    for number, row in enumerate(scores):
        for start in range(0, len(row), goal.group):
            channels = row[start : start + goal.group]
            if isinstance(goal, NMGoal):
                kept += sum(sorted(channels)[-goal.keep :])
            else:
                assert isinstance(goal, BlockGoal)
                kept += max(sum(channels), float(goal.thresholds[number]))
    return kept


def best_of_all_orders(scores: Floats, goal: Goal) -> float:
    """Return the highest kept score of all ways to divide the channels into two groups."""
    channels = range(scores.shape[1])
    splits = ([*first, *(set(channels) - set(first))] for first in combinations(channels, goal.group))
    return max(kept_by_rows(scores[:, order], goal) for order in splits)


@settings(max_examples=25)
@given(seed=st.integers(0, 999), name=st.sampled_from([name for name in GOALS if name != "4:8"]))
def test_two_groups_keep_nearly_as_much_as_in_the_best_order(seed: int, name: str) -> None:
    goal = GOALS[name]
    scores = random_scores(5, 2 * goal.group, seed)
    order = search_permutation(scores, goal, sweeps=100)
    assert sorted(order) == list(range(2 * goal.group))
    best = best_of_all_orders(scores, goal)
    assert 0.99 * best <= goal.measure(scores[:, order]) <= best * (1 + 1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), name=st.sampled_from(["2:4", "4:8", "1:4", "blocks"]), sweeps=st.sampled_from([0, 5]))
def test_no_exchange_of_two_channels_gains(seed: int, name: str, sweeps: int) -> None:
    goal = GOALS[name]
    scores = random_scores(5, 16, seed)
    order = search_permutation(scores, goal, sweeps=sweeps)
    kept = kept_by_rows(scores[:, order], goal)
    assert kept == pytest.approx(goal.measure(scores[:, order]))
    assert kept >= kept_by_rows(scores, goal)
    for first, second in combinations(range(16), 2):
        other = order.copy()
        other[[first, second]] = order[[second, first]]
        assert kept_by_rows(scores[:, other], goal) <= kept * (1 + 1e-4)


def test_the_published_matrix_is_searched_better_than_by_the_paper() -> None:
    scores = np.random.RandomState(1).rand(128, 64)
    goal = NMGoal(2, 4)
    before, rows = goal.measure(scores), np.sort(scores, axis=1)[:, 32:].sum()
    assert (before, rows) == (pytest.approx(2852.377, abs=1e-3), pytest.approx(3042.332, abs=1e-3))
    kept = goal.measure(scores[:, search_permutation(scores, goal)])
    assert kept - before > 0.355 * (rows - before)


def test_many_channels_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, goal = random_scores(5, 128), NMGoal(2, 4)
    whole = search_permutation(scores, goal, sweeps=0)
    monkeypatch.setattr(channel_permutation, "MAX_SUBSET", 40)
    largest = []
    search = channel_permutation._search_groups

    def record(scores: Floats, *rest: Any) -> Any:
        largest.append(len(scores))
        return search(scores, *rest)

    monkeypatch.setattr(channel_permutation, "_search_groups", record)
    order = search_permutation(scores, goal, sweeps=0)
    assert sorted(order) == list(range(128))
    assert (len(largest), max(largest)) == (16, 32)
    before, parts, best = (goal.measure(scores[:, item]) for item in (np.arange(128), order, whole))
    assert parts - before > 0.9 * (best - before)


def test_equal_arguments_have_equal_results_in_a_normal_form() -> None:
    scores = random_scores(16, 32)
    order = search_permutation(scores, NMGoal(2, 4), sweeps=20)
    assert order.tolist() == search_permutation(scores, NMGoal(2, 4), sweeps=20).tolist()
    groups = order.reshape(-1, 4)
    assert (np.diff(groups, axis=1) > 0).all()
    assert (np.diff(groups[:, 0]) > 0).all()


@pytest.mark.parametrize(
    "scores", [np.ones((3, 8)), np.zeros((3, 8)), random_scores(3, 4)], ids=["equal", "zero", "one"]
)
def test_where_nothing_gains_the_order_stays(scores: Floats) -> None:
    assert search_permutation(scores, NMGoal(2, 4)).tolist() == list(range(scores.shape[1]))


@pytest.mark.parametrize("scores", [np.ones((2, 6)), np.ones(8), np.full((2, 8), np.nan)])
def test_bad_arguments(scores: Floats) -> None:
    with pytest.raises(ConfigError, match="scores must be finite, of shape"):
        search_permutation(scores, NMGoal(2, 4))
