"""Medians of calls."""

from collections.abc import Callable

import pytest
import torch

from secateur.runtime.pytorch import timing
from secateur.runtime.pytorch.timing import measure_load, measure_medians

CPU = torch.device("cpu")


class FakeClock:
    """A clock that only moves when a call takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, *seconds: float) -> Callable[[], None]:
        """Make a function whose calls take these seconds. All further calls take the last number of seconds."""
        left = list(seconds)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_each_call_has_its_median() -> None:
    clock = FakeClock()
    assert measure_medians([clock.sleep(4.0), clock.sleep(0.5)], CPU, 0.0, clock=clock) == [4.0, 0.5]


def test_the_first_call_and_outliers_do_not_count() -> None:
    clock = FakeClock()
    assert measure_medians([clock.sleep(64.0, 32.0, 16.0, 1.0)], CPU, 0.0, clock=clock) == [1.0]


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 5), (7.0, 8), (1e9, 200)])
def test_rounds_fit_into_the_budget(budget: float, rounds: int) -> None:
    clock, calls = FakeClock(), list[int]()

    def call() -> None:
        calls.append(1)
        clock.now += 1.0

    measure_medians([call], CPU, budget, clock=clock)
    assert len(calls) == 1 + rounds
    assert (timing.MIN_ROUNDS, timing.MAX_ROUNDS) == (5, 200)


def test_load_is_per_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.os, "getloadavg", lambda: (6.0, 1.0, 1.0))
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 4)
    assert measure_load() == 1.5
    monkeypatch.delattr(timing.os, "getloadavg")
    assert measure_load() == 0.0
