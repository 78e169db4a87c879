"""Threads that share work: a thread pool, and the threads of an OpenMP runtime."""

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

from interleaving import before_calls
from secateur.runtime.kernels import use_openmp_threads
from secateur.runtime.kernels.threading import KernelExecutor, get_executor
from secateur.runtime.kernels.threading import executor as executor_module
from secateur.runtime.kernels.threading.openmp import OpenMPJob, OpenMPTeam
from secateur.runtime.kernels.threading.pool import ThreadPool, get_scratch
from secateur.runtime.kernels.threading.step import PlannedStep, create_job

KERNEL = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5)


class Gauge:
    """Counts the threads that work, and remembers the maximum."""

    def __init__(self) -> None:
        self.current = self.maximum = self.done = 0
        self._lock = threading.Lock()

    def work(self, *_: Any) -> None:
        with self._lock:
            self.current += 1
            self.maximum = max(self.maximum, self.current)
        time.sleep(0.002)
        with self._lock:
            self.current -= 1
            self.done += 1


def create_step(
    kernel: Callable[..., None], shares: int, threads: int, scratch_bytes: int = 0, useful_threads: int | None = None
) -> Any:
    """Plan a step with a kernel written in Python, whose plans are numbers from 1."""
    function: Any = KERNEL(kernel)
    plans = np.arange(1, shares + 1)
    job = create_job(function, plans, scratch_bytes)
    return PlannedStep(
        function=function,
        plans=tuple(plans.tolist()),
        x=0,
        y=0,
        scratch_bytes=scratch_bytes,
        useful_threads=useful_threads or threads,
        threads=threads,
        job=job,
        owners=(function, plans),
    )


@pytest.mark.parametrize(("threads", "maximum"), [(8, 8), (2, 2), (1, 1)])
def test_pool_limits_the_threads_of_a_call(threads: int, maximum: int) -> None:
    gauge = Gauge()
    ThreadPool().run([gauge.work] * 40, threads)
    assert gauge.done == 40
    assert gauge.maximum <= maximum


def test_pool_starts_workers_for_concurrent_calls() -> None:
    pool, gauge = ThreadPool(), Gauge()
    callers = [threading.Thread(target=pool.run, args=([gauge.work] * 20, 2)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert gauge.done == 80
    assert 5 < gauge.maximum <= 8


def test_pool_reuses_workers() -> None:
    pool = ThreadPool()
    for _ in range(20):
        pool.run([lambda: time.sleep(0.002)] * 4, 2)
    assert pool.worker_count <= 3  # One may still be finishing when the next call comes.


def test_pool_raises_the_error_of_a_task_and_keeps_working() -> None:
    pool, gauge = ThreadPool(), Gauge()

    def fail() -> None:
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        pool.run([gauge.work, fail, gauge.work], 2)
    assert gauge.done == 2
    pool.run([gauge.work] * 3, 2)
    assert gauge.done == 5


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
def test_interrupted_caller_waits_for_running_workers() -> None:
    is_done = threading.Event()
    start = threading.Barrier(2)

    def work() -> None:
        start.wait()
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3)
            is_done.set()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            ThreadPool().run([work, work], 2)
        assert is_done.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_scratch_is_aligned_and_per_thread() -> None:
    addresses: list[int] = []
    thread = threading.Thread(target=lambda: addresses.append(get_scratch(1000)))
    address = get_scratch(1000)
    thread.start()
    thread.join()
    assert address % 64 == addresses[0] % 64 == 0
    assert get_scratch(500) == address


# Both kinds of threads


@pytest.fixture(params=["team", "pool"])
def executor(request: pytest.FixtureRequest) -> KernelExecutor:
    return KernelExecutor(3, request.getfixturevalue("team") if request.param == "team" else None)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("shares", [1, 2, 7, 40])
def test_each_share_runs_once_with_its_arguments(executor: KernelExecutor, shares: int, threads: int) -> None:
    calls: list[tuple[int | None, ...]] = []
    step = create_step(lambda *arguments: calls.append(arguments[:4]), shares, threads)._replace(x=10, y=20)
    executor.run_step(step, 1000, 2000, 3000)
    assert sorted(calls) == [(plan, 1000, 2010, 3020) for plan in range(1, shares + 1)]


def test_working_threads_have_separate_scratch(executor: KernelExecutor) -> None:
    in_use: set[int] = set()
    addresses: list[int] = []

    def kernel(*arguments: int) -> None:
        scratch = arguments[4]
        assert scratch not in in_use
        in_use.add(scratch)
        time.sleep(0.002)
        in_use.remove(scratch)
        addresses.append(scratch)

    executor.run_step(create_step(kernel, 30, 3, scratch_bytes=1000), 0, 0, 0)
    assert len(addresses) == 30  # Errors raised by a Python kernel are lost.
    places = sorted(set(addresses))
    assert len(places) > 1
    assert all(second - first >= 1000 for first, second in pairwise(places))
    assert all(place % 64 == 0 for place in places)


def test_team_allocates_scratch_for_all_threads(team: OpenMPTeam) -> None:
    sizes: list[int] = []
    with before_calls(get_scratch, lambda call: sizes.append(call["size"])):
        KernelExecutor(3, team).run_step(create_step(lambda *_: None, 6, 3, scratch_bytes=1000), 0, 0, 0)
    assert sizes == [3 * 1024]


def test_executor_limits_the_threads_of_all_products(executor: KernelExecutor) -> None:
    gauge = Gauge()
    executor.run_step(create_step(gauge.work, 30, 8), 0, 0, 0)
    assert (gauge.done, gauge.maximum <= 3) == (30, True)
    steps = [create_step(gauge.work, 10, 8) for _ in range(6)]
    callers = [threading.Thread(target=executor.run_step, args=(step, 0, 0, 0)) for step in steps]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert gauge.done == 90
    assert gauge.maximum <= 3 + 5  # A caller that finds no free thread works alone.
    executor.run_step(create_step(gauge.work, 30, 8), 0, 0, 0)
    assert executor.free_threads == 3


def test_only_useful_threads_work(executor: KernelExecutor) -> None:
    gauge = Gauge()
    executor.run_step(create_step(gauge.work, 20, 3, useful_threads=2), 0, 0, 0)
    assert (gauge.done, gauge.maximum) == (20, 2)


def test_nested_teams_run_all_shares(team: OpenMPTeam) -> None:
    executor, inner = KernelExecutor(8, team), Gauge()
    step = create_step(inner.work, 5, 2)
    executor.run_step(create_step(lambda *_: executor.run_step(step, 0, 0, 0), 4, 2), 0, 0, 0)
    assert inner.done == 20


def test_threads_are_used_if_they_pay_off(team: OpenMPTeam) -> None:
    class Team:
        """A team that takes as long as expected to wake."""

        run = team.run

        def measure_wake_seconds(self, size: int) -> float:
            return size * 1e-5

    with_team = KernelExecutor(4, Team())
    assert [with_team.count_useful_threads(seconds, 4) for seconds in (0, 9e-5, 1.1e-4, 1)] == [1, 1, 4, 4]
    assert [with_team.count_useful_threads(seconds, 64) for seconds in (1e-3, 2e-3)] == [1, 64]
    assert with_team.count_useful_threads(1, 1) == 1
    with_pool = KernelExecutor(4)
    assert [with_pool.count_useful_threads(seconds, 3) for seconds in (0, 1e-4, 2e-4, 1)] == [1, 1, 2, 3]


def test_waking_a_team_takes_time(team: OpenMPTeam) -> None:
    assert 0 < team.measure_wake_seconds(2) < 1
    team.run(OpenMPJob(), 2)  # An empty job is no error.


def test_a_library_without_openmp_has_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ctypes.CDLL(_ctypes.__file__)
    monkeypatch.setattr(executor_module, "_executor", KernelExecutor(1))
    assert OpenMPTeam.from_library(library) is None
    use_openmp_threads(library)
    assert get_executor().team is None


AFTER_FORK = """
import os, signal, torch, numpy as np
from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.kernels.threading import KernelExecutor, get_executor
import secateur.runtime.pytorch
KernelExecutor.count_useful_threads = lambda _, __, threads: threads
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
print(get_executor().team is not None, flush=True)
child = os.fork()
if not child:
    signal.alarm(20)
    os._exit(0 if np.array_equal(product(), before) and get_executor().team is None else 1)
print(os.waitpid(child, 0)[1], np.array_equal(product(), before))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("team")
def test_a_forked_process_works_without_the_threads_of_its_parent() -> None:
    run = subprocess.run([sys.executable, "-c", AFTER_FORK], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.split() == ["True", "0", "True"], run.stderr
