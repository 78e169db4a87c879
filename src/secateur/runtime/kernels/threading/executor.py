"""Who does the shares of a product."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from secateur.runtime.kernels.threading.openmp import Job, Team
from secateur.runtime.kernels.threading.pool import Crew, scratch
from secateur.runtime.kernels.threading.step import PlannedStep

__all__ = ["Product", "Workforce", "product_of", "use_openmp_threads", "workforce"]

Product: TypeAlias = Callable[[int, int, int], None]
"""What takes the addresses of the bias, the activations and the result."""

SECONDS_PER_HELPER = 150e-6
"""Of one thread's work for each helper. To wake one costs up to 70 us where other work has the processors."""

SECONDS_PER_THREAD = 10e-6
"""Of one thread's work for each thread of a team, as estimated: twice that with the cold caches of a model."""

WAKINGS = 2.5
"""How much longer than its waking a product takes on one thread before it gains from a team."""

PF_FORKNOEXEC = 0x40
"""Flag of a process in Linux (proc(5)): it was forked and has not called exec."""


class Workforce:
    """The threads that products share, never more of them at work than the process may use processors.

    They are those of a team, if there is one, for its threads may be spinning on the processors that helpers of our own
    would need: OpenMP's wait some milliseconds for more work before they sleep.

    Args:
        size: Threads at work at most, those that ask included.
        team: Threads that there are already; ``None``: helpers are hired.
    """

    def __init__(self, size: int, team: Team | None = None) -> None:
        self._free, self._lock = size, threading.Lock()
        self._team, self._crew = team, Crew()
        self._waking: dict[int, float] = {}

    def useful(self, seconds: float, threads: int) -> int:
        """How many threads a product is worth.

        Args:
            seconds: What it takes on one.
            threads: How many there are.
        """
        if self._team is None:
            return min(threads, 1 + int(seconds / SECONDS_PER_HELPER))
        if threads > 1 and threads not in self._waking:
            self._waking[threads] = self._team.waking(threads)
        if threads == 1 or seconds < WAKINGS * self._waking[threads]:
            return 1
        return min(threads, 1 + int(seconds / SECONDS_PER_THREAD))

    def share_out(self, step: PlannedStep, bias: int, x: int, y: int) -> None:
        """Do all shares of a step, and return when they are done.

        Who asks does some too, and all if no processor is free, because other requests have them.
        """
        with self._lock:
            workers = min(step.useful, self._free)
            self._free -= workers
        try:
            if workers > 1 and self._team is not None:
                job = Job.from_buffer_copy(step.job)
                job.workers, job.bias, job.x, job.y = workers, bias, x + step.x, y + step.y
                job.scratch = scratch(workers * job.stride) if job.stride else 0
                self._team.run(job, step.threads)
            else:
                self._crew.run([partial(step.run, plan, bias, x, y) for plan in step.plans], max(workers, 1))
        finally:
            with self._lock:
                self._free += workers


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_workforce = Workforce(_processors())


def workforce() -> Workforce:
    """That of this process."""
    return _workforce


def use_openmp_threads(library: ctypes.CDLL) -> None:
    """Work with the threads of the OpenMP runtime that a library is linked with, if it has one of the kind that serves.

    A forked process keeps threads of its own: the runtime may believe that it has those of the parent, and wait for
    them without end.

    Args:
        library: One whose own work takes turns with products, such as torch's.
    """
    global _workforce
    _workforce = Workforce(_processors(), None if _is_forked() else Team.of(library))


def _is_forked() -> bool:
    """Whether this process is a copy of its parent that has not started a program of its own, as far as Linux says."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        return bool(int(fields[6]) & PF_FORKNOEXEC)
    except (OSError, IndexError, ValueError):
        return False


def _after_fork() -> None:
    """A forked process has none of its parent's threads, and a team waits for them without end."""
    global _workforce
    _workforce = Workforce(_processors())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def product_of(steps: Sequence[PlannedStep]) -> Product:
    """Steps one after another."""
    products = [_product_of(step) for step in steps]
    if len(products) == 1:
        return products[0]

    def all_of_them(bias: int, x: int, y: int) -> None:
        for product in products:
            product(bias, x, y)

    return all_of_them


def _product_of(step: PlannedStep) -> Product:
    if len(step.plans) == 1:
        return partial(step.run, step.plans[0])

    def shared(bias: int, x: int, y: int) -> None:
        workforce().share_out(step, bias, x, y)  # those of this process, which may have been forked since

    return shared
