"""Share the OpenMP threads of torch with the kernels."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from secateur.runtime.kernels import use_openmp_threads

__all__ = ["use_openmp_of_torch"]


def use_openmp_of_torch() -> None:
    """Run kernels on the threads of the OpenMP runtime that torch is linked to (Linux only)."""
    file = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if file.exists():
        use_openmp_threads(ctypes.CDLL(str(file)))
