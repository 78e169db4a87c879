"""Allocate arrays before an inaccessible page, so that reading past the end crashes."""

import ctypes
import mmap
import sys

import numpy as np
import pytest

__all__ = ["copy_fenced", "needs_mprotect"]

needs_mprotect = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect as on Linux")


def copy_fenced(array: np.ndarray) -> np.ndarray:
    """Copy an array to the end of a page that is followed by an inaccessible page."""
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), mmap.PAGESIZE, 0) == 0
    copy = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy
