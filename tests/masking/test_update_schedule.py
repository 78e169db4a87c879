"""When masks change, and how sparse they are then."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.config import PruningConfig
from secateur.errors import ConfigError
from secateur.masking.update_schedule import UpdateSchedule
from secateur.schedules import SCHEDULES


def timeline(initial: float = 0.0, target: float = 0.8, **config: Any) -> UpdateSchedule:
    return UpdateSchedule(PruningConfig(**config), initial, target)


def updates(line: UpdateSchedule) -> list[int]:
    return [step for step in range(50) if line.is_update(step)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [1]),
        ({"start_step": 0}, [0]),
        ({"start_step": 7}, [7]),
        ({"end_step": 1}, [1]),
        ({"end_step": 21}, [1, 11, 21]),
        ({"end_step": 25}, [1, 11, 21, 25]),
        ({"end_step": 5}, [1, 5]),
        ({"start_step": 0, "end_step": 9, "pruning_frequency": 3}, [0, 3, 6, 9]),
        ({"start_step": 2, "end_step": 5, "pruning_frequency": 1}, [2, 3, 4, 5]),
        ({"end_step": 30, "sparsity_decay_type": "one_shot"}, [1]),
    ],
)
def test_updates(config: dict[str, Any], expected: list[int]) -> None:
    line = timeline(**config)
    assert updates(line) == expected
    assert line.end == expected[-1]
    for now, then in pairwise(expected):
        assert {line.next_update(step) for step in range(now, then)} == {then}


@given(start=st.integers(0, 20), length=st.integers(0, 20), frequency=st.integers(1, 30))
def test_first_and_last_step_are_updates(start: int, length: int, frequency: int) -> None:
    found = updates(timeline(start_step=start, end_step=start + length, pruning_frequency=frequency))
    assert found[0] == start
    assert found[-1] == start + length
    assert all(then - now == frequency for now, then in pairwise(found[:-1]))


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    initial=st.floats(0, 1),
    target=st.floats(0, 1),
    end=st.integers(1, 30),
    frequency=st.integers(1, 7),
)
def test_sparsity_grows_from_the_initial_one_to_exactly_the_target(
    name: str, initial: float, target: float, end: int, frequency: int
) -> None:
    initial, target = sorted((initial, target))
    config = {"end_step": 1 + end, "pruning_frequency": frequency, "sparsity_decay_type": name}
    line = timeline(initial, target, **config)
    found = [line.sparsity(step) for step in updates(line)]
    assert found[-1] == target
    assert all(initial - 1e-12 <= sparsity <= target + 1e-12 for sparsity in found)
    assert all(now <= then + 1e-12 for now, then in pairwise(found))
    assert line.sparsity(line.end + 1) == target


def test_own_schedule() -> None:
    def squared(initial: float, target: float, progress: float) -> float:
        return initial + (target - initial) * progress**2

    line = timeline(end_step=11, pruning_frequency=5, sparsity_decay_type=squared)
    assert [line.sparsity(step) for step in (1, 6, 11)] == [0.0, pytest.approx(0.2), 0.8]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, math.inf])
def test_schedule_must_return_a_share(wrong: float) -> None:
    line = timeline(end_step=9, sparsity_decay_type=lambda *_: wrong)
    with pytest.raises(ConfigError, match=r"must return a sparsity in \[0, 1\].* returned .*progress=0.5"):
        line.sparsity(5)


def test_target_below_what_is_there() -> None:
    with pytest.raises(ConfigError, match=r"starts with 90.0000% of its units zero, more than target_sparsity=0.8"):
        timeline(initial=0.9)


def test_a_request_takes_the_place_of_the_schedule() -> None:
    config = PruningConfig(start_step=0, end_step=20, sparsity_decay_type="linear")
    asked = []

    def request(step: int, initial: float, target: float) -> float | None:
        asked.append((step, initial, target))
        return {0: 0.3, 10: None, 20: 0.6, 21: 0.9}[step]

    line = UpdateSchedule(config, 0.1, 0.8, request=request)
    assert [line.sparsity(step) for step in (0, 10, 20, 21)] == pytest.approx([0.3, 0.45, 0.6, 0.8])
    assert asked == [(step, 0.1, 0.8) for step in (0, 10, 20, 21)]
    with pytest.raises(ConfigError, match=r"must return a sparsity in \[0, 1\].*returned -0.5"):
        UpdateSchedule(config, 0.1, 0.8, request=lambda *_: -0.5).sparsity(20)
