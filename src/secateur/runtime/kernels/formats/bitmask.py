"""How weights lie in memory that are decoded into tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.base import STRIP, TileLayout, aligned, in_pieces, ranks
from secateur.runtime.kernels.formats.dtypes import Floats, decoded, encoded, in_halves, whole

__all__ = ["Masked"]

MASKED_CHUNK = 128
"""Outputs of a chunk."""

MASKED_PART = 256
"""Inputs of a part."""

LINE = 2 * STRIP
"""Weights of a line: two inputs of sixteen outputs."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Masked(TileLayout):
    """Numbers that are not zero: chunk of outputs by chunk, within it part by part, within it by strips.

    A chunk is 128 outputs, a part 256 inputs, a strip sixteen outputs; two inputs of a strip are a line.

    Attributes:
        starts: For each strip, how many weights lie before it, and at the end how many there are.
        columns: For each line, 32 bits: which of its weights are not zero, output by output.
        values: For each line, its weights as bfloat16; or of float32 their large halves, then the small ones.
        halves: Bfloat16 for each weight, 2 or 1.

    Example:
        >>> masked = Masked.of(np.eye(2, dtype=np.float32))
        >>> bin(masked.columns[0]), masked.to_dense()
        ('0b1001', array([[1., 0.],
               [0., 1.]], dtype=float32))
    """

    halves: int

    @classmethod
    def of(cls, weight_OI: Floats, dtype: str = "float32") -> Masked:
        """The weights that are not zero, as float32 or bfloat16.

        Raises:
            LayerError: One has no halves; see `in_halves`.
        """
        outputs, inputs = weight_OI.shape
        tiles = in_pieces(weight_OI, MASKED_CHUNK, MASKED_PART).reshape(
            -1, MASKED_CHUNK // STRIP, STRIP, MASKED_PART // 2, 2
        )
        lines = tiles.transpose(0, 1, 3, 2, 4).reshape(-1, LINE)
        kept = lines != 0
        stored, rest = encoded(lines[kept], "bfloat16")[:, None], np.empty(0, np.int8)
        if dtype == "float32":
            stored, rest = in_halves(lines[kept])
        counts = kept.sum(axis=1)
        starts = np.zeros(len(lines) * LINE // (STRIP * MASKED_PART) + 1, np.int64)
        np.cumsum(counts.reshape(-1, MASKED_PART // 2).sum(axis=1), out=starts[1:])
        values = np.empty(stored.size, np.uint16)
        values[places(counts, stored.shape[1])] = stored
        return cls(
            shape=(outputs, inputs),
            starts=starts,
            columns=aligned(np.packbits(kept, axis=1, bitorder="little").view(np.uint32).reshape(-1)),
            values=aligned(values),
            rest=rest,
            halves=stored.shape[1],
        )

    @property
    def element(self) -> str:
        """See `TileLayout.element`."""
        return "float" if self.halves == 2 else "bfloat"

    def to_dense(self) -> Floats:
        """See `Layout.to_dense`."""
        outputs, inputs = self.shape
        kept = np.unpackbits(self.columns.view(np.uint8), bitorder="little").reshape(-1, LINE).astype(np.bool_)
        stored = self.values[places(kept.sum(axis=1), self.halves)]
        lines = np.zeros(kept.shape, np.float32)
        lines[kept] = whole(stored, self.rest) if self.element == "float" else decoded(stored[:, 0])
        tiles = lines.reshape(-(-outputs // MASKED_CHUNK), -1, MASKED_CHUNK // STRIP, MASKED_PART // 2, STRIP, 2)
        padded = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(len(tiles) * MASKED_CHUNK, -1)
        return np.ascontiguousarray(padded[:outputs, :inputs])


def places(counts: npt.NDArray[np.int64], halves: int) -> npt.NDArray[np.int64]:
    """Where the halves of each weight are, for lines of so many weights: weights × halves.

    Example:
        >>> places(np.array([2, 1]), 2).tolist()
        [[0, 2], [1, 3], [4, 5]]
    """
    starts = np.cumsum(counts, dtype=np.int64) - counts
    first = ranks(counts) + halves * np.repeat(starts, counts)
    found: npt.NDArray[np.int64] = first[:, None] + np.repeat(counts, counts)[:, None] * np.arange(halves)
    return found
