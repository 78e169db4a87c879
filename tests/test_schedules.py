import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ConfigError, UnknownNameError
from secateur.schedules import SCHEDULES, get_schedule, register_schedule

SHARE = st.floats(0, 1)
PROGRESS = [step / 40 for step in range(41)]

every_schedule = pytest.mark.parametrize("name", sorted(SCHEDULES))


@every_schedule
@given(initial=SHARE, target=SHARE)
def test_the_target_is_reached_exactly(name: str, initial: float, target: float) -> None:
    assert SCHEDULES[name](initial, target, 1.0) == target


@every_schedule
@given(initial=SHARE, target=SHARE)
def test_schedules_start_at_the_initial_sparsity(name: str, initial: float, target: float) -> None:
    expected = target if name == "one_shot" or target == 1.0 == initial else initial
    assert SCHEDULES[name](initial, target, 0.0) == pytest.approx(expected, abs=1e-12)


@every_schedule
@given(ends=st.tuples(SHARE, SHARE).map(sorted))
def test_schedules_increase_within_bounds(name: str, ends: list[float]) -> None:
    initial, target = ends
    values = [SCHEDULES[name](initial, target, progress) for progress in PROGRESS]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(values))
    assert all(initial - 1e-12 <= value <= target + 1e-12 for value in values)


@pytest.mark.parametrize(
    ("name", "halfway"),
    [
        ("one_shot", 0.75),
        ("linear", 0.375),
        ("cosine", 0.375),
        ("exponential", 0.5),
        ("cubic", 0.65625),
        ("cube", 0.09375),
    ],
)
def test_halfway_to_three_quarters(name: str, halfway: float) -> None:
    assert SCHEDULES[name](0.0, 0.75, 0.5) == pytest.approx(halfway)


def test_every_schedule_has_a_halfway_value() -> None:
    worked = {
        mark.args[1][row][0] for mark in test_halfway_to_three_quarters.pytestmark for row in range(len(mark.args[1]))
    }
    assert worked == set(SCHEDULES)


@pytest.mark.usefixtures("registries_restored")
def test_a_custom_schedule() -> None:
    def late(initial: float, target: float, progress: float) -> float:
        return target if progress == 1.0 else initial

    assert get_schedule(late) is late
    assert register_schedule("late")(late) is get_schedule("late") is late
    with pytest.raises(ConfigError, match="The schedule name 'late' is taken by"):
        register_schedule("late")(late)


def test_the_error_for_an_unknown_schedule_has_suggestions() -> None:
    with pytest.raises(
        UnknownNameError, match=r"Unknown schedule 'cubik'\. Did you mean 'cubic'\? Known: cosine, cube,"
    ):
        get_schedule("cubik")
