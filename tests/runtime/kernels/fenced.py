"""Memory behind which nothing may be read: whoever does is stopped by the operating system."""

import ctypes
import mmap
import sys

import numpy as np
import pytest

__all__ = ["fenced", "fences"]

fences = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forbids a page of memory as Linux does")


def fenced(array: np.ndarray) -> np.ndarray:
    """A copy that ends where the next page is forbidden."""
    room = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + room), mmap.PAGESIZE, 0) == 0
    copy = np.frombuffer(memory, array.dtype, array.size, room - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy
