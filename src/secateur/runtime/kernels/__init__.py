"""Products with pruned weights on the CPU, by code that is made for the processor at hand."""

from __future__ import annotations

from secateur.runtime.kernels.numbers import DTYPES
from secateur.runtime.kernels.packed import ACTIVATIONS, PackedMatrix, unsupported

__all__ = ["ACTIVATIONS", "DTYPES", "PackedMatrix", "unsupported"]
