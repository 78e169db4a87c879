"""Threads that share the work of one product, and their memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np

from secateur.runtime.kernels.layouts import CACHE_LINE

__all__ = ["Crew", "run_all", "scratch"]

Work = Callable[[], None]


class _Local(threading.local):
    """One thread's memory for packed activations, which grows and is used again."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)
        self.address = 0


_local = _Local()


def scratch(size: int) -> int:
    """The address of memory of this thread, of at least `size` bytes, good until the next call in it."""
    if len(_local.memory) < size + CACHE_LINE:
        _local.memory = np.empty(size + CACHE_LINE, np.uint8)
        address = _local.memory.ctypes.data
        _local.address = address + -address % CACHE_LINE
    return _local.address


class Crew:
    """Helpers that wait for work, never more of them at work than the process may use processors.

    Who asks for work to be done does it too. If no helper is free, because other requests have them, or none has woken
    up yet, it does all: nobody waits for work that nobody has begun.

    Args:
        size: Threads at work at most, those that ask included.

    Example:
        >>> done = []
        >>> Crew(2).run([lambda: done.append(1), lambda: done.append(2)], threads=2)
        >>> sorted(done)
        [1, 2]
    """

    def __init__(self, size: int) -> None:
        self._free = threading.Semaphore(size)
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._hired = 0
        self._size = size
        self._lock = threading.Lock()

    def run(self, work: Sequence[Work], threads: int) -> None:
        """Do all work, in any order, and return when it is done.

        Args:
            work: Its pieces.
            threads: How many may be at it at most, this one included.

        Raises:
            BaseException: What any of it raised.
        """
        if len(work) == 1:
            work[0]()
            return
        left, ends = deque(work), SimpleQueue[BaseException | None]()
        own_place = self._free.acquire(blocking=False)
        try:
            self._call(min(len(work), threads) - 1, left, ends)
            _drain(left, ends)
            errors = [ends.get() for _ in work]
        finally:
            if own_place:
                self._free.release()
        for error in errors:
            if error is not None:
                raise error

    def _call(self, count: int, left: deque[Work], ends: SimpleQueue[BaseException | None]) -> None:
        """Wake as many helpers as are wanted and may work."""
        called = 0
        while called < count and self._free.acquire(blocking=False):
            self._hire(called + 1)
            self._calls.put(lambda: _drain(left, ends))
            called += 1

    def _hire(self, wanted: int) -> None:
        with self._lock:
            if self._hired < min(wanted, self._size):
                self._hired += 1
                threading.Thread(target=self._help, name=f"secateur-kernel-{self._hired}", daemon=True).start()

    def _help(self) -> None:
        while True:
            self._calls.get()()
            self._free.release()


def _drain(left: deque[Work], ends: SimpleQueue[BaseException | None]) -> None:
    """Do what is left until nothing is, and say how each piece ended."""
    while True:
        try:
            work = left.popleft()
        except IndexError:
            return
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the one who asked raises it
            ends.put(error)
        else:
            ends.put(None)


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_crew = Crew(_processors())


def run_all(work: Sequence[Work], threads: int) -> None:
    """Do all work with the process's crew; see `Crew.run`."""
    _crew.run(work, threads)


def _new_crew() -> None:
    """A forked process has none of its parent's threads."""
    global _crew
    _crew = Crew(_processors())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_crew)
