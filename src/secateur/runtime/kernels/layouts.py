"""How a kernel's weights lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.choice import Step, block_steps

__all__ = ["Blocks", "aligned"]

Floats = npt.NDArray[np.float32]

CACHE_LINE = 64
"""Bytes that a cache holds or does not hold together."""

MOST_IN_SHORT = 1 << 16
"""Numbers that an index of two bytes tells apart."""


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that begins with a cache line.

    Example:
        >>> aligned(np.ones(3)).ctypes.data % 64
        0
    """
    memory = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks of N outputs × M inputs that are not all zero, row of blocks by row of blocks.

    Attributes:
        shape: (O, I) of the weight.
        block: (N, M).
        starts: For each row of blocks, how many blocks lie before it, and at the end how many there are.
        columns: For each block, how many blocks fit to the left of it.
        values: The numbers: blocks × M inputs × N outputs.

    Example:
        >>> blocks = Blocks.of(np.array([[0, 1], [0, 2]], np.float32), (2, 1))
        >>> blocks.columns, blocks.values.ravel()
        (array([1], dtype=uint16), array([1., 2.], dtype=float32))
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    starts: npt.NDArray[np.int64]
    columns: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    values: npt.NDArray[Any]

    @classmethod
    def of(cls, weight_OI: Floats, block: tuple[int, int]) -> Blocks:
        """The blocks of a weight that they tile."""
        (outputs, inputs), (rows, cols) = weight_OI.shape, block
        tiles = weight_OI.reshape(outputs // rows, rows, inputs // cols, cols)
        keep: npt.NDArray[np.bool_] = np.any(tiles, axis=(1, 3))
        starts = np.zeros(len(keep) + 1, np.int64)
        np.cumsum(keep.sum(axis=1), out=starts[1:])
        row, column = np.nonzero(keep)
        index = np.uint16 if inputs // cols <= MOST_IN_SHORT else np.uint32
        values = tiles.transpose(0, 2, 3, 1)[row, column]
        return cls((outputs, inputs), block, starts, aligned(column.astype(index)), aligned(values))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes

    def addresses(self) -> tuple[int, ...]:
        """Where the arrays are that a kernel reads first."""
        return self.starts.ctypes.data, self.columns.ctypes.data, self.values.ctypes.data, 0, 0

    def steps(self, element: str, rows: int) -> list[Step]:
        """The kernels for a batch; `element`: LLVM's type of activations."""
        return block_steps(self.block, (f"i{8 * self.columns.itemsize}", element, "float"), rows)

    def dense(self) -> Floats:
        """The weight with its zeros."""
        (outputs, inputs), (rows, cols) = self.shape, self.block
        tiles = np.zeros((outputs // rows, inputs // cols, cols, rows), np.float32)
        row = np.repeat(np.arange(outputs // rows), np.diff(self.starts))
        tiles[row, self.columns] = self.values
        return tiles.transpose(0, 3, 1, 2).reshape(outputs, inputs)
