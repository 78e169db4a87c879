"""Threads that share work: helpers of our own, and those of an OpenMP runtime."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from secateur.runtime.kernels.threading import executor
from secateur.runtime.kernels.threading.executor import Workforce
from secateur.runtime.kernels.threading.openmp import Job, Team
from secateur.runtime.kernels.threading.pool import Crew, scratch
from secateur.runtime.kernels.threading.step import PlannedStep, job_of

KERNEL = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5)


class Gauge:
    """How many are at work, and the most there were."""

    def __init__(self) -> None:
        self.now = self.most = self.done = 0
        self._lock = threading.Lock()

    def work(self, *_: Any) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.002)
        with self._lock:
            self.now -= 1
            self.done += 1


def step(kernel: Callable[..., None], shares: int, threads: int, memory: int = 0, useful: int | None = None) -> Any:
    """A step with a kernel of Python's, whose plans are numbers from 1."""
    function: Any = KERNEL(kernel)
    plans = np.arange(1, shares + 1)
    job = job_of(function, plans, memory)
    held = function, plans
    return PlannedStep(function, tuple(plans.tolist()), 0, 0, memory, useful or threads, threads, job, held)


@pytest.mark.parametrize(("threads", "most"), [(8, 8), (2, 2), (1, 1)])
def test_no_more_helpers_at_work_than_allowed(threads: int, most: int) -> None:
    gauge = Gauge()
    Crew().run([gauge.work] * 40, threads)
    assert gauge.done == 40
    assert gauge.most <= most


def test_helpers_are_hired_for_requests_at_once() -> None:
    crew, gauge = Crew(), Gauge()
    requests = [threading.Thread(target=crew.run, args=([gauge.work] * 20, 2)) for _ in range(4)]
    for request in requests:
        request.start()
    for request in requests:
        request.join()
    assert gauge.done == 80
    assert 5 < gauge.most <= 8


def test_helpers_are_not_hired_anew_for_every_request() -> None:
    crew = Crew()
    for _ in range(20):
        crew.run([lambda: time.sleep(0.002)] * 4, 2)
    assert crew._hired <= 3  # one may still be on its way out when the next is called


def test_what_a_piece_raises_is_raised_and_the_crew_works_on() -> None:
    crew, gauge = Crew(), Gauge()

    def broken() -> None:
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        crew.run([gauge.work, broken, gauge.work], 2)
    assert gauge.done == 2
    crew.run([gauge.work] * 3, 2)
    assert gauge.done == 5


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
def test_who_is_interrupted_leaves_when_no_helper_is_at_work() -> None:
    done = threading.Event()
    begun = threading.Barrier(2)

    def long() -> None:
        begun.wait()
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3)
            done.set()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            Crew().run([long, long], 2)
        assert done.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_scratch_is_aligned_and_of_one_thread() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(scratch(1000)))
    here = scratch(1000)
    thread.start()
    thread.join()
    assert here % 64 == found[0] % 64 == 0
    assert scratch(500) == here


# The threads of torch's OpenMP runtime


@pytest.fixture(params=["team", "helpers"])
def workforce(request: pytest.FixtureRequest) -> Workforce:
    return Workforce(3, request.getfixturevalue("team") if request.param == "team" else None)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("shares", [1, 2, 7, 40])
def test_every_share_is_done_once_with_what_belongs_to_it(workforce: Workforce, shares: int, threads: int) -> None:
    calls: list[tuple[int | None, ...]] = []
    own = step(lambda *given: calls.append(given[:4]), shares, threads)._replace(x=10, y=20)
    workforce.share_out(own, 1000, 2000, 3000)
    assert sorted(calls) == [(plan, 1000, 2010, 3020) for plan in range(1, shares + 1)]


def test_threads_at_work_have_memory_of_their_own(workforce: Workforce) -> None:
    at_work: set[int] = set()
    found: list[int] = []

    def kernel(*given: int) -> None:
        memory = given[4]
        assert memory not in at_work
        at_work.add(memory)
        time.sleep(0.002)
        at_work.remove(memory)
        found.append(memory)

    workforce.share_out(step(kernel, 30, 3, memory=1000), 0, 0, 0)
    assert len(found) == 30  # what a kernel of Python's raises is lost
    places = sorted(set(found))
    assert len(places) > 1
    assert all(second - first >= 1000 for first, second in pairwise(places))
    assert all(place % 64 == 0 for place in places)


def test_a_team_asks_for_memory_for_all_of_it(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(executor, "scratch", lambda size: asked.append(size) or scratch(size))
    Workforce(3, team).share_out(step(lambda *_: None, 6, 3, memory=1000), 0, 0, 0)
    assert asked == [3 * 1024]


def test_no_more_at_work_than_processors_and_all_is_done(workforce: Workforce) -> None:
    gauge = Gauge()
    workforce.share_out(step(gauge.work, 30, 8), 0, 0, 0)
    assert (gauge.done, gauge.most <= 3) == (30, True)
    requests = [threading.Thread(target=workforce.share_out, args=(step(gauge.work, 10, 8), 0, 0, 0)) for _ in range(6)]
    for request in requests:
        request.start()
    for request in requests:
        request.join()
    assert gauge.done == 90
    assert gauge.most <= 3 + 5  # those that find no place free work alone
    workforce.share_out(step(gauge.work, 30, 8), 0, 0, 0)
    assert workforce._free == 3  # all places were given back


def test_only_as_many_as_are_useful_work(workforce: Workforce) -> None:
    gauge = Gauge()
    workforce.share_out(step(gauge.work, 20, 3, useful=2), 0, 0, 0)
    assert (gauge.done, gauge.most) == (20, 2)


def test_a_team_within_a_team_does_all(team: Team) -> None:
    workforce, inner = Workforce(8, team), Gauge()
    own = step(inner.work, 5, 2)
    workforce.share_out(step(lambda *_: workforce.share_out(own, 0, 0, 0), 4, 2), 0, 0, 0)
    assert inner.done == 20


def test_a_team_is_asked_if_it_is_worth_its_waking(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Team, "waking", lambda _, size: size * 1e-5)
    workforce = Workforce(4, team)
    assert [workforce.useful(seconds, 4) for seconds in (0, 9e-5, 1.1e-4, 1)] == [1, 1, 4, 4]
    assert [workforce.useful(seconds, 64) for seconds in (1e-3, 2e-3)] == [1, 64]
    assert workforce.useful(1, 1) == 1
    helped = Workforce(4)
    assert [helped.useful(seconds, 3) for seconds in (0, 1e-4, 2e-4, 1)] == [1, 1, 2, 3]


def test_waking_takes_some_time(team: Team) -> None:
    assert 0 < team.waking(2) < 1
    team.run(Job(), 2)  # nothing to do is no error


def test_a_library_without_openmp_has_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ctypes.CDLL(_ctypes.__file__)
    monkeypatch.setattr(executor, "_workforce", Workforce(1))
    assert Team.of(library) is None
    executor.use_openmp_threads(library)
    assert executor.workforce()._team is None


AFTER_FORK = """
import os, signal, torch, numpy as np
from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.kernels.threading.executor import Workforce, workforce
import secateur.runtime.pytorch
Workforce.useful = lambda _, __, threads: threads
torch.set_num_threads(2)
weight = np.random.default_rng(0).standard_normal((256, 64), np.float32)
matrix = PackedMatrix.from_dense(weight, "4x1")
bias, x = np.zeros(256, np.float32), np.ones((8, 64), np.float32)
multiply = matrix.compile_product(8, threads=2)

def product():
    y = np.empty((8, 256), np.float32)
    multiply(bias.ctypes.data, x.ctypes.data, y.ctypes.data)
    return y

before = product()
print(workforce()._team is not None, flush=True)
child = os.fork()
if not child:
    signal.alarm(20)
    os._exit(0 if np.array_equal(product(), before) and workforce()._team is None else 1)
print(os.waitpid(child, 0)[1], np.array_equal(product(), before))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("team")
def test_a_forked_process_works_without_the_threads_of_its_parent() -> None:
    found = subprocess.run([sys.executable, "-c", AFTER_FORK], capture_output=True, text=True, timeout=120, check=False)
    assert found.stdout.split() == ["True", "0", "True"], found.stderr
