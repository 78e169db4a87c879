"""Store weights for AMX as nonzero values and one mask bit per weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.base import (
    STRIP,
    AmxFormat,
    copy_aligned,
    number_within_runs,
    split_into_pieces,
)
from secateur.runtime.kernels.formats.dtypes import Floats, decode, encode, merge_float32, split_float32

__all__ = ["BITMASK_CHUNK", "BITMASK_PIECE", "BitmaskFormat", "locate_values"]

BITMASK_CHUNK = 128
"""Number of outputs in a chunk."""

BITMASK_PIECE = 256
"""Number of inputs in a piece."""

LINE = 2 * STRIP
"""Number of weights in a line: two inputs of sixteen outputs."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BitmaskFormat(AmxFormat):
    """Nonzero weights and a bitmask: chunk by chunk of outputs, then piece by piece of inputs, then by strips.

    A chunk has 128 outputs, a piece 256 inputs and a strip sixteen outputs. Two inputs of a strip form a line, which a
    kernel expands into a row of an AMX tile.

    Attributes:
        starts: For each strip, the number of weights before it, and the total at the end.
        columns: For each line, a 32-bit mask of its nonzero weights, output by output.
        values: For each line, its nonzero weights as bfloat16. For float32, the high parts of the line, then the low
            parts. See `split_float32`.
        halves: Number of bfloat16 per weight, 2 for float32 and 1 for bfloat16.

    Examples:
        >>> packed = BitmaskFormat.from_dense(np.eye(2, dtype=np.float32))
        >>> bin(packed.columns[0]), packed.to_dense()
        ('0b1001', array([[1., 0.],
               [0., 1.]], dtype=float32))
    """

    halves: int

    @classmethod
    def from_dense(cls, weight_OI: Floats, dtype: str = "float32") -> BitmaskFormat:
        """Pack the nonzero weights as float32 or bfloat16.

        Raises:
            LayerError: A weight cannot be split. See `split_float32`.
        """
        outputs, inputs = weight_OI.shape
        pieces = split_into_pieces(weight_OI, BITMASK_CHUNK, BITMASK_PIECE)
        strips = pieces.reshape(-1, BITMASK_CHUNK // STRIP, STRIP, BITMASK_PIECE // 2, 2)
        lines = strips.transpose(0, 1, 3, 2, 4).reshape(-1, LINE)
        is_kept = lines != 0
        stored, remainder = encode(lines[is_kept], "bfloat16")[:, None], np.empty(0, np.int8)
        if dtype == "float32":
            stored, remainder = split_float32(lines[is_kept])
        counts = is_kept.sum(axis=1)
        starts = np.zeros(len(lines) * LINE // (STRIP * BITMASK_PIECE) + 1, np.int64)
        np.cumsum(counts.reshape(-1, BITMASK_PIECE // 2).sum(axis=1), out=starts[1:])
        values = np.empty(stored.size, np.uint16)
        values[locate_values(counts, stored.shape[1])] = stored
        return cls(
            shape=(outputs, inputs),
            starts=starts,
            columns=copy_aligned(np.packbits(is_kept, axis=1, bitorder="little").view(np.uint32).reshape(-1)),
            values=copy_aligned(values),
            remainder=remainder,
            halves=stored.shape[1],
        )

    @property
    def activation_type(self) -> str:
        """See `AmxFormat.activation_type`."""
        return "float" if self.halves == 2 else "bfloat"

    def to_dense(self) -> Floats:
        """See `WeightFormat.to_dense`."""
        outputs, inputs = self.shape
        is_kept = np.unpackbits(self.columns.view(np.uint8), bitorder="little").reshape(-1, LINE).astype(np.bool_)
        stored = self.values[locate_values(is_kept.sum(axis=1), self.halves)]
        lines = np.zeros(is_kept.shape, np.float32)
        lines[is_kept] = merge_float32(stored, self.remainder) if self.halves == 2 else decode(stored[:, 0])
        strips = lines.reshape(-(-outputs // BITMASK_CHUNK), -1, BITMASK_CHUNK // STRIP, BITMASK_PIECE // 2, STRIP, 2)
        padded = strips.transpose(0, 2, 4, 1, 3, 5).reshape(len(strips) * BITMASK_CHUNK, -1)
        return np.ascontiguousarray(padded[:outputs, :inputs])


def locate_values(counts: npt.NDArray[np.int64], halves: int) -> npt.NDArray[np.int64]:
    """Return the positions of the parts of each weight in `BitmaskFormat.values`, of shape (weights, halves).

    Args:
        counts: Number of weights in each line.
        halves: Number of parts of a weight.

    Examples:
        >>> locate_values(np.array([2, 1]), 2).tolist()
        [[0, 2], [1, 3], [4, 5]]
    """
    starts = np.cumsum(counts, dtype=np.int64) - counts
    first = number_within_runs(counts) + halves * np.repeat(starts, counts)
    positions: npt.NDArray[np.int64] = first[:, None] + np.repeat(counts, counts)[:, None] * np.arange(halves)
    return positions
