"""Threads of our own that share work, and the memory of a thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np

from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES

__all__ = ["Crew", "scratch"]

Work = Callable[[], None]


class _Local(threading.local):
    """One thread's memory for packed activations, which grows and is used again."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)
        self.address = 0


_local = _Local()


def scratch(size: int) -> int:
    """The address of memory of this thread, of at least `size` bytes, good until the next call in it."""
    if len(_local.memory) < size + CACHE_LINE_BYTES:
        _local.memory = np.empty(size + CACHE_LINE_BYTES, np.uint8)
        address = _local.memory.ctypes.data
        _local.address = address + -address % CACHE_LINE_BYTES
    return _local.address


class Crew:
    """Helpers that wait for work, hired when they are wanted for the first time.

    Who asks for work to be done does it too. If no helper has woken up yet, it does all: nobody waits for work that
    nobody has begun.

    Example:
        >>> done = []
        >>> Crew().run([lambda: done.append(1), lambda: done.append(2)], threads=2)
        >>> sorted(done)
        [1, 2]
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._hired = self._called = 0
        self._lock = threading.Lock()

    def run(self, work: Sequence[Work], threads: int) -> None:
        """Do all work, in any order, and return when it is done.

        Args:
            work: Its pieces.
            threads: How many may be at it at most, this one included.

        Raises:
            BaseException: What any of it raised, or what interrupted the waiting; no helper is at it any more then.
        """
        helpers = min(len(work), threads) - 1
        left, ends, gone = deque(work), SimpleQueue[BaseException | None](), threading.Semaphore(0)

        def help_out() -> None:
            _drain(left, ends)
            gone.release()

        for _ in range(helpers):
            self._call(help_out)
        try:
            _drain(left, ends)
            errors = [ends.get() for _ in work]
        except BaseException:  # Ctrl-C; helpers still write to where the caller's memory is
            left.clear()
            for _ in range(helpers):
                gone.acquire()
            raise
        for error in errors:
            if error is not None:
                raise error

    def _call(self, help_out: Callable[[], object]) -> None:
        with self._lock:
            self._called += 1
            if self._called > self._hired:
                self._hired += 1
                threading.Thread(target=self._help, name=f"secateur-kernel-{self._hired}", daemon=True).start()
        self._calls.put(help_out)

    def _help(self) -> None:
        while True:
            self._calls.get()()
            with self._lock:
                self._called -= 1


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
