"""A thread pool in which the caller also runs tasks, and scratch memory per thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np

from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES

__all__ = ["ThreadPool", "get_scratch"]

Task = Callable[[], None]


class _ThreadScratch(threading.local):
    """Scratch memory of one thread, which grows and is reused."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)
        self.address = 0


_thread_scratch = _ThreadScratch()


def get_scratch(size: int) -> int:
    """Return the address of at least `size` bytes of scratch memory, valid until the next call in this thread."""
    if len(_thread_scratch.memory) < size + CACHE_LINE_BYTES:
        _thread_scratch.memory = np.empty(size + CACHE_LINE_BYTES, np.uint8)
        address = _thread_scratch.memory.ctypes.data
        _thread_scratch.address = address + -address % CACHE_LINE_BYTES
    return _thread_scratch.address


class ThreadPool:
    """A pool of worker threads that are started on demand and help the caller with its tasks.

    The caller also runs tasks. If no worker is awake yet, the caller runs all of them, so it never waits for a task
    that has not started.

    Examples:
        >>> results = []
        >>> ThreadPool().run([lambda: results.append(1), lambda: results.append(2)], threads=2)
        >>> sorted(results)
        [1, 2]
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._worker_count = self._call_count = 0
        self._lock = threading.Lock()

    @property
    def worker_count(self) -> int:
        """Number of worker threads that have been started."""
        return self._worker_count

    def run(self, tasks: Sequence[Task], threads: int) -> None:
        """Run all tasks, in any order, and return when they are done.

        Args:
            tasks: The tasks.
            threads: Maximum number of threads, including the caller.

        Raises:
            BaseException: An exception of a task, or an interruption of the caller. It is raised after all workers have
                stopped.
        """
        workers = min(len(tasks), threads) - 1
        queue, outcomes, finished = deque(tasks), SimpleQueue[BaseException | None](), threading.Semaphore(0)

        def help_caller() -> None:
            _drain(queue, outcomes)
            finished.release()

        for _ in range(workers):
            self._call_worker(help_caller)
        try:
            _drain(queue, outcomes)
            errors = [outcomes.get() for _ in tasks]
        except BaseException:  # Ctrl-C; workers may still write to the caller's memory.
            queue.clear()
            for _ in range(workers):
                finished.acquire()
            raise
        for error in errors:
            if error is not None:
                raise error

    def _call_worker(self, function: Callable[[], object]) -> None:
        with self._lock:
            self._call_count += 1
            if self._call_count > self._worker_count:
                self._worker_count += 1
                name = f"secateur-kernel-{self._worker_count}"
                threading.Thread(target=self._run_worker, name=name, daemon=True).start()
        self._calls.put(function)

    def _run_worker(self) -> None:
        while True:
            self._calls.get()()
            with self._lock:
                self._call_count -= 1


def _drain(queue: deque[Task], outcomes: SimpleQueue[BaseException | None]) -> None:
    """Run tasks until the queue is empty, and report the exception of each task, or ``None``."""
    while True:
        try:
            task = queue.popleft()
        except IndexError:
            return
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            outcomes.put(error)
        else:
            outcomes.put(None)
