"""Threads that share the work of one product, and their memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from secateur.runtime.kernels.layouts import CACHE_LINE

__all__ = ["run_all", "scratch"]


class _Local(threading.local):
    """One thread's memory for packed activations, which grows and is used again."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)


_local = _Local()


def scratch(size: int) -> int:
    """The address of memory of this thread, of at least `size` bytes, good until the next call in it."""
    if len(_local.memory) < size + CACHE_LINE:
        _local.memory = np.empty(size + CACHE_LINE, np.uint8)
    address = _local.memory.ctypes.data
    return address + -address % CACHE_LINE


def run_all(work: Sequence[Callable[[], None]]) -> None:
    """Do all work, the first of it in this thread, and return when it is done."""
    futures = [_pool().submit(some) for some in work[1:]]
    for some in work[:1]:
        some()
    for future in futures:
        future.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="secateur-kernel")


if hasattr(os, "register_at_fork"):  # A forked process has none of its parent's threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
