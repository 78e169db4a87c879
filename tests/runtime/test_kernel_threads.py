"""Helpers that share work."""

from __future__ import annotations

import threading
import time

import pytest

from secateur.runtime.kernels.threads import Crew, scratch


class Gauge:
    """How many are at work, and the most there were."""

    def __init__(self) -> None:
        self.now = self.most = self.done = 0
        self._lock = threading.Lock()

    def work(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.002)
        with self._lock:
            self.now -= 1
            self.done += 1


@pytest.mark.parametrize(("size", "threads", "most"), [(3, 8, 3), (8, 2, 2), (8, 1, 1)])
def test_no_more_at_work_than_allowed(size: int, threads: int, most: int) -> None:
    gauge = Gauge()
    Crew(size).run([gauge.work] * 40, threads)
    assert gauge.done == 40
    assert gauge.most <= most


def test_requests_at_once_share_the_helpers() -> None:
    crew, gauge = Crew(4), Gauge()
    requests = [threading.Thread(target=crew.run, args=([gauge.work] * 20, 4)) for _ in range(4)]
    for request in requests:
        request.start()
    for request in requests:
        request.join()
    assert gauge.done == 80
    assert gauge.most <= 7  # four that ask, and at most three helpers that were called before


def test_what_a_piece_raises_is_raised_and_the_crew_works_on() -> None:
    crew, gauge = Crew(2), Gauge()

    def broken() -> None:
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        crew.run([gauge.work, broken, gauge.work], 2)
    assert gauge.done == 2
    crew.run([gauge.work] * 3, 2)
    assert gauge.done == 5


def test_scratch_is_aligned_and_of_one_thread() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(scratch(1000)))
    here = scratch(1000)
    thread.start()
    thread.join()
    assert here % 64 == found[0] % 64 == 0
    assert scratch(500) == here
