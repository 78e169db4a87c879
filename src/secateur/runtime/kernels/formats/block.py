"""Blocks of outputs and inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.base import MOST_IN_SHORT, Layout, aligned
from secateur.runtime.kernels.formats.dtypes import Floats, decoded

__all__ = ["FOLLOWING", "Blocks"]

FOLLOWING = 4
"""Blocks from the one at work to the one whose activations are asked for: 3 to 5 % for 4x1, nothing for 8x1."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Blocks(Layout):
    """Blocks of N outputs × M inputs that are not all zero, row of blocks by row of blocks.

    Attributes:
        block: (N, M).
        starts: For each row of blocks, how many blocks lie before it, and at the end how many there are.
        columns: For each block, how many blocks fit to the left of it, and zeros for kernels that look ahead.
        values: The numbers: blocks × M inputs × N outputs.

    Example:
        >>> blocks = Blocks.of(np.array([[0, 1], [0, 2]], np.float32), (2, 1))
        >>> blocks.columns[:1], blocks.values.ravel()
        (array([1], dtype=uint16), array([1., 2.], dtype=float32))
    """

    block: tuple[int, int]

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
        return cls(
            shape=(outputs, inputs),
            block=block,
            starts=starts,
            columns=aligned(np.append(column, np.zeros(FOLLOWING)).astype(index)),
            values=aligned(values),
        )

    @property
    def index(self) -> str:
        """LLVM's type of a block's number within its row."""
        return f"i{8 * self.columns.itemsize}"

    def to_dense(self) -> Floats:
        """See `Layout.to_dense`."""
        (outputs, inputs), (rows, cols) = self.shape, self.block
        tiles = np.zeros((outputs // rows, inputs // cols, cols, rows), np.float32)
        row = np.repeat(np.arange(outputs // rows), np.diff(self.starts))
        tiles[row, self.columns[: len(row)]] = decoded(self.values)
        return tiles.transpose(0, 3, 1, 2).reshape(outputs, inputs)
