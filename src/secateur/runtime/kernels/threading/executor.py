"""Run the shares of products on OpenMP threads or in a thread pool."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from secateur.runtime.kernels.threading.openmp import OpenMPJob, OpenMPTeam
from secateur.runtime.kernels.threading.pool import ThreadPool, get_scratch
from secateur.runtime.kernels.threading.step import PlannedStep

__all__ = ["KernelExecutor", "Product", "build_product", "get_executor", "use_openmp_threads"]

Product: TypeAlias = Callable[[int, int, int], None]
"""A function that takes the addresses of the bias, the activations and the result."""

SECONDS_PER_POOL_THREAD = 150e-6
"""Single-threaded seconds that justify one more pool thread. Waking a thread takes up to 70 µs on a busy machine."""

SECONDS_PER_TEAM_THREAD = 10e-6
"""Estimated single-threaded seconds that justify one more team thread. Cold caches in a model double the real time."""

MIN_WAKE_RATIO = 2.5
"""A team pays off if a product takes this many times as long on one thread as waking the team."""

PF_FORKNOEXEC = 0x40
"""Flag of a Linux process that was forked and has not called exec. See proc(5)."""


class KernelExecutor:
    """Runs shares on threads that are used by all products of a process, at most one per available processor.

    It prefers an OpenMP team, because OpenMP threads spin for a few milliseconds before they sleep and would compete
    with the threads of a pool for processors.

    Args:
        size: Maximum number of working threads, including the callers.
        team: An OpenMP team. Without a team, a `ThreadPool` is used.
    """

    def __init__(self, size: int, team: OpenMPTeam | None = None) -> None:
        self._free_threads, self._lock = size, threading.Lock()
        self._team, self._pool = team, ThreadPool()
        self._wake_seconds: dict[int, float] = {}

    @property
    def team(self) -> OpenMPTeam | None:
        """The OpenMP team, or ``None`` if shares run in a thread pool."""
        return self._team

    @property
    def free_threads(self) -> int:
        """Number of threads that are not in use."""
        return self._free_threads

    def count_useful_threads(self, seconds: float, threads: int) -> int:
        """Return the number of threads that are worth using for a product.

        Args:
            seconds: Estimated time on one thread.
            threads: Maximum number of threads.
        """
        if self._team is None:
            return min(threads, 1 + int(seconds / SECONDS_PER_POOL_THREAD))
        if threads > 1 and threads not in self._wake_seconds:
            self._wake_seconds[threads] = self._team.measure_wake_seconds(threads)
        if threads == 1 or seconds < MIN_WAKE_RATIO * self._wake_seconds[threads]:
            return 1
        return min(threads, 1 + int(seconds / SECONDS_PER_TEAM_THREAD))

    def run_step(self, step: PlannedStep, bias: int, x: int, y: int) -> None:
        """Run all shares of a step, and return when they are done.

        The caller also runs shares, and runs all of them if other products use all processors.
        """
        with self._lock:
            workers = min(step.useful_threads, self._free_threads)
            self._free_threads -= workers
        try:
            if workers > 1 and self._team is not None:
                job = OpenMPJob.from_buffer_copy(step.job)
                job.workers, job.bias, job.x, job.y = workers, bias, x + step.x, y + step.y
                job.scratch = get_scratch(workers * job.stride) if job.stride else 0
                self._team.run(job, step.threads)
            else:
                self._pool.run([partial(step.run_share, plan, bias, x, y) for plan in step.plans], max(workers, 1))
        finally:
            with self._lock:
                self._free_threads += workers


def _count_processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_executor = KernelExecutor(_count_processors())


def get_executor() -> KernelExecutor:
    """Return the executor of this process."""
    return _executor


def use_openmp_threads(library: ctypes.CDLL) -> None:
    """Run products on the threads of the OpenMP runtime that a library is linked to, if the runtime is supported.

    A forked process keeps using a thread pool, because the runtime may assume that the threads of the parent still
    exist and wait for them forever.

    Args:
        library: A library whose work alternates with products, such as torch.
    """
    global _executor
    _executor = KernelExecutor(_count_processors(), None if _is_forked() else OpenMPTeam.from_library(library))


def _is_forked() -> bool:
    """Whether Linux reports that this process was forked and has not called exec."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        return bool(int(fields[6]) & PF_FORKNOEXEC)
    except (OSError, IndexError, ValueError):
        return False


def _reset_after_fork() -> None:
    """Start over with a thread pool, because a forked process has no threads, and an OpenMP team would wait forever."""
    global _executor
    _executor = KernelExecutor(_count_processors())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def build_product(steps: Sequence[PlannedStep]) -> Product:
    """Combine steps into one function that runs them one after another."""
    products = [_build_step_product(step) for step in steps]
    if len(products) == 1:
        return products[0]

    def run_all(bias: int, x: int, y: int) -> None:
        for product in products:
            product(bias, x, y)

    return run_all


def _build_step_product(step: PlannedStep) -> Product:
    if len(step.plans) == 1:
        return partial(step.run_share, step.plans[0])

    def run_shared(bias: int, x: int, y: int) -> None:
        get_executor().run_step(step, bias, x, y)  # get_executor() on each call: the process may have been forked

    return run_shared
