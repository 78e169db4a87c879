"""How a kernel's weights lie in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.dtypes import Floats, encoded, stored

__all__ = ["CACHE_LINE_BYTES", "STRIP", "Layout", "TileLayout", "aligned", "in_pieces", "ranks"]

CACHE_LINE_BYTES = 64
"""Bytes that a cache holds or does not hold together."""

STRIP = 16
"""Outputs that are stored and written together: a cache line of float32."""

MOST_IN_SHORT = 1 << 16
"""Numbers that an index of two bytes tells apart."""


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that begins with a cache line.

    Example:
        >>> aligned(np.ones(3)).ctypes.data % 64
        0
    """
    memory = np.empty(array.nbytes + CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def in_pieces(weight_OI: Floats, chunk: int, piece: int) -> Floats:
    """A weight with zeros behind its ends, as (chunks × pieces, outputs of a chunk, inputs of a piece)."""
    outputs, inputs = weight_OI.shape
    padded = np.zeros((-(-outputs // chunk) * chunk, -(-inputs // piece) * piece), np.float32)
    padded[:outputs, :inputs] = weight_OI
    tiles = padded.reshape(-1, chunk, padded.shape[1] // piece, piece).transpose(0, 2, 1, 3)
    return tiles.reshape(-1, chunk, piece)


def ranks(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For runs that lie one behind another, the place of each element in its run.

    Example:
        >>> ranks(np.array([2, 0, 3]))
        array([0, 1, 0, 1, 2])
    """
    behind = np.cumsum(lengths)
    total = int(behind[-1]) if len(behind) else 0
    return np.arange(total) - np.repeat(behind - lengths, lengths)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layout(ABC):
    """The weights that stay, and where they belong.

    Attributes:
        shape: (O, I) of the weight.
        starts: For each run of weights, how many lie before it, and at the end how many there are; each layout counts
            in its own way.
        columns: Where weights belong among the inputs.
        values: The weights; see `numbers.WEIGHT_DTYPES`.
        scales: For int8, what the numbers of each output are to be multiplied with; else empty.
        order: Where weights belong among the outputs, if that is not clear from their order; else empty.
        rest: For weights in halves, what `in_halves` leaves, which kernels do not read; else empty.
    """

    shape: tuple[int, int]
    starts: npt.NDArray[np.int64]
    columns: npt.NDArray[Any]
    values: npt.NDArray[Any]
    scales: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    order: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    rest: npt.NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))

    @abstractmethod
    def to_dense(self) -> Floats:
        """The weight with its zeros, without scales."""

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """What a kernel reads, in the order of `kernel.ARRAYS`."""
        return self.starts, self.columns, self.values, self.scales, self.order

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(array.nbytes for array in (*self.arrays, self.rest))

    @property
    def stored(self) -> str:
        """LLVM's type of the weights."""
        return stored(self.values)

    def as_dtype(self, dtype: str, scales: Floats) -> Self:
        """The same, stored as another type; its numbers are whole if that is int8."""
        return replace(self, values=aligned(encoded(self.values, dtype)), scales=scales)


class TileLayout(Layout):
    """For tiles of bfloat16: multiplied with rows of its own type alone, and with no images."""

    __slots__ = ()

    @property
    @abstractmethod
    def element(self) -> str:
        """LLVM's type of the activations: ``float`` if the weights are in halves, else ``bfloat``."""
