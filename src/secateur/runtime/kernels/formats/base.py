"""Define the base class of weight formats, and array operations for all formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.dtypes import Floats, encode, get_llvm_type

__all__ = [
    "CACHE_LINE_BYTES",
    "MAX_UINT16_INDICES",
    "STRIP",
    "AmxFormat",
    "WeightFormat",
    "copy_aligned",
    "number_within_runs",
    "split_into_pieces",
]

CACHE_LINE_BYTES = 64
"""Size of a cache line."""

STRIP = 16
"""Number of outputs in a strip. Their weights are interleaved, and their results fill a cache line of float32."""

MAX_UINT16_INDICES = 1 << 16
"""Number of positions that a 16-bit index can address."""


def copy_aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy an array to memory that starts at a cache line.

    Examples:
        >>> copy_aligned(np.ones(3)).ctypes.data % 64
        0
    """
    memory = np.empty(array.nbytes + CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def split_into_pieces(weight_OI: Floats, chunk: int, piece: int) -> Floats:
    """Split a weight into pieces of `chunk` outputs and `piece` inputs, padded with zeros.

    Returns:
        An array of shape (chunks × pieces, chunk, piece).
    """
    outputs, inputs = weight_OI.shape
    padded = np.zeros((-(-outputs // chunk) * chunk, -(-inputs // piece) * piece), np.float32)
    padded[:outputs, :inputs] = weight_OI
    pieces = padded.reshape(-1, chunk, padded.shape[1] // piece, piece).transpose(0, 2, 1, 3)
    return pieces.reshape(-1, chunk, piece)


def number_within_runs(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number the elements of consecutive runs, starting at 0 in each run.

    Examples:
        >>> number_within_runs(np.array([2, 0, 3]))
        array([0, 1, 0, 1, 2])
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - lengths, lengths)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WeightFormat(ABC):
    """The nonzero weights of a matrix and their positions, in the memory layout that a family of kernels reads.

    Attributes:
        shape: Shape (O, I) of the weight.
        starts: For each run of weights, the number of weights before it, and the total at the end. The unit (weights,
            groups of sixteen, blocks, tiles) depends on the format.
        columns: Input positions of the weights.
        values: The weights, in one of `WEIGHT_DTYPES`.
        scales: The scale of each output for int8, otherwise empty.
        order: Output positions of the weights if the order of `values` does not imply them, otherwise empty.
        remainder: The remainders of `split_float32` for float32 stored as two bfloat16, otherwise empty. Kernels do not
            read them.
    """

    shape: tuple[int, int]
    starts: npt.NDArray[np.int64]
    columns: npt.NDArray[Any]
    values: npt.NDArray[Any]
    scales: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    order: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    remainder: npt.NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))

    @abstractmethod
    def to_dense(self) -> Floats:
        """Return the dense weight, without applying scales."""

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays that kernels read, in the order of `codegen.kernel.ARRAYS`."""
        return self.starts, self.columns, self.values, self.scales, self.order

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(array.nbytes for array in (*self.arrays, self.remainder))

    @property
    def weight_type(self) -> str:
        """LLVM type of the weights."""
        return get_llvm_type(self.values)

    def to_dtype(self, dtype: str, scales: Floats) -> Self:
        """Return the same weights in another storage type. For int8, the values must be integers."""
        return replace(self, values=copy_aligned(encode(self.values, dtype)), scales=scales)


class AmxFormat(WeightFormat):
    """Base class of formats for AMX, which support only one type of activations, and no convolutions."""

    __slots__ = ()

    @property
    @abstractmethod
    def activation_type(self) -> str:
        """LLVM type of the activations: ``float`` if weights are stored as two bfloat16, otherwise ``bfloat``."""
