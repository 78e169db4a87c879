"""torch's threads, for kernels to work with."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from secateur.runtime.kernels import use_openmp_threads

__all__ = ["borrow_threads_of_torch"]


def borrow_threads_of_torch() -> None:
    """Have kernels work with the threads of the OpenMP runtime that torch is linked with: on Linux, where it is."""
    file = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if file.exists():
        use_openmp_threads(ctypes.CDLL(str(file)))
