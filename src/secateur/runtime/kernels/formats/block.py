"""Store weights with a block pattern such as ``4x1``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.base import MAX_UINT16_INDICES, WeightFormat, copy_aligned
from secateur.runtime.kernels.formats.dtypes import Floats, decode

__all__ = ["PREFETCH_BLOCKS", "BlockFormat"]

PREFETCH_BLOCKS = 4
"""Distance, in blocks, to the activations to prefetch. Prefetching is 3 to 5 % faster for 4x1 and no faster for 8x1."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BlockFormat(WeightFormat):
    """Nonzero blocks of N outputs × M inputs, one row of blocks after another.

    Attributes:
        block: Size (N, M) of a block.
        starts: For each row of blocks, the number of blocks before it, and the total at the end.
        columns: For each block, its position in the row, in blocks. Padded with `PREFETCH_BLOCKS` zeros, because
            kernels read ahead to prefetch.
        values: The weights, of shape (blocks, M, N).

    Examples:
        >>> blocks = BlockFormat.from_dense(np.array([[0, 1], [0, 2]], np.float32), (2, 1))
        >>> blocks.columns[:1], blocks.values.ravel()
        (array([1], dtype=uint16), array([1., 2.], dtype=float32))
    """

    block: tuple[int, int]

    @classmethod
    def from_dense(cls, weight_OI: Floats, block: tuple[int, int]) -> BlockFormat:
        """Pack the nonzero blocks of a weight whose shape is a multiple of the block."""
        (outputs, inputs), (rows, cols) = weight_OI.shape, block
        tiles = weight_OI.reshape(outputs // rows, rows, inputs // cols, cols)
        is_kept: npt.NDArray[np.bool_] = np.any(tiles, axis=(1, 3))
        starts = np.zeros(len(is_kept) + 1, np.int64)
        np.cumsum(is_kept.sum(axis=1), out=starts[1:])
        row, column = np.nonzero(is_kept)
        index_dtype = np.uint16 if inputs // cols <= MAX_UINT16_INDICES else np.uint32
        values = tiles.transpose(0, 2, 3, 1)[row, column]
        return cls(
            shape=(outputs, inputs),
            block=block,
            starts=starts,
            columns=copy_aligned(np.append(column, np.zeros(PREFETCH_BLOCKS)).astype(index_dtype)),
            values=copy_aligned(values),
        )

    @property
    def index_type(self) -> str:
        """LLVM type of `columns`."""
        return f"i{8 * self.columns.itemsize}"

    def to_dense(self) -> Floats:
        """See `WeightFormat.to_dense`."""
        (outputs, inputs), (rows, cols) = self.shape, self.block
        tiles = np.zeros((outputs // rows, inputs // cols, cols, rows), np.float32)
        row = np.repeat(np.arange(outputs // rows), np.diff(self.starts))
        tiles[row, self.columns[: len(row)]] = decode(self.values)
        return tiles.transpose(0, 3, 1, 2).reshape(outputs, inputs)
