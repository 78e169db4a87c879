"""The search for orders of channels, against brute force."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import ConfigError
from secateur.patterns.channel_permutation import compute_kept_score, search_permutation

Floats = npt.NDArray[np.float64]


def random_scores(rows: int, channels: int, seed: int = 0) -> Floats:
    return np.abs(np.random.default_rng(seed).standard_normal((rows, channels)))


def kept_by_rows(scores: Floats, keep: int, group: int) -> float:
    """Return the kept score in the plainest form."""
    return sum(sum(sorted(row[start : start + group])[-keep:]) for row in scores for start in range(0, len(row), group))


def best_of_all_orders(scores: Floats, keep: int, group: int) -> float:
    """Return the highest kept score of all ways to divide the channels into two groups."""
    channels = range(scores.shape[1])
    splits = ([*first, *(set(channels) - set(first))] for first in combinations(channels, group))
    return max(kept_by_rows(scores[:, order], keep, group) for order in splits)


@settings(max_examples=25)
@given(seed=st.integers(0, 999), pattern=st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2)]))
def test_two_groups_keep_nearly_as_much_as_in_the_best_order(seed: int, pattern: tuple[int, int]) -> None:
    keep, group = pattern
    scores = random_scores(5, 2 * group, seed)
    order = search_permutation(scores, keep, group, sweeps=100)
    assert sorted(order) == list(range(2 * group))
    best = best_of_all_orders(scores, keep, group)
    assert 0.99 * best <= compute_kept_score(scores[:, order], keep, group) <= best * (1 + 1e-5)


@settings(max_examples=15)
@given(seed=st.integers(0, 999), pattern=st.sampled_from([(2, 4), (4, 8), (1, 4)]), sweeps=st.sampled_from([0, 5]))
def test_no_exchange_of_two_channels_gains(seed: int, pattern: tuple[int, int], sweeps: int) -> None:
    keep, group = pattern
    scores = random_scores(6, 16, seed)
    order = search_permutation(scores, keep, group, sweeps=sweeps)
    kept = kept_by_rows(scores[:, order], keep, group)
    assert kept == pytest.approx(compute_kept_score(scores[:, order], keep, group))
    assert kept >= kept_by_rows(scores, keep, group)
    for first, second in combinations(range(16), 2):
        other = order.copy()
        other[[first, second]] = order[[second, first]]
        assert kept_by_rows(scores[:, other], keep, group) <= kept * (1 + 1e-4)


def test_a_third_of_what_2_4_loses_to_single_weights_is_regained() -> None:
    scores = random_scores(128, 64, seed=1)
    before, best = compute_kept_score(scores, 2, 4), np.sort(scores, axis=None)[-scores.size // 2 :].sum()
    order = search_permutation(scores, 2, 4)
    assert compute_kept_score(scores[:, order], 2, 4) - before > 0.33 * (best - before)


def test_equal_arguments_have_equal_results_in_a_normal_form() -> None:
    scores = random_scores(16, 32)
    order = search_permutation(scores, 2, 4, sweeps=20)
    assert order.tolist() == search_permutation(scores, 2, 4, sweeps=20).tolist()
    groups = order.reshape(-1, 4)
    assert (np.diff(groups, axis=1) > 0).all()
    assert (np.diff(groups[:, 0]) > 0).all()


@pytest.mark.parametrize(
    "scores", [np.ones((3, 8)), np.zeros((3, 8)), random_scores(3, 4)], ids=["equal", "zero", "one"]
)
def test_where_nothing_gains_the_order_stays(scores: Floats) -> None:
    assert search_permutation(scores, 2, 4).tolist() == list(range(scores.shape[1]))


@pytest.mark.parametrize(
    ("scores", "keep"), [(np.ones((2, 6)), 2), (np.ones(8), 2), (np.ones((2, 8)), 4), (np.full((2, 8), np.nan), 2)]
)
def test_bad_arguments(scores: Floats, keep: int) -> None:
    with pytest.raises(ConfigError, match="scores must be finite, of shape"):
        search_permutation(scores, keep, 4)
