"""How single weights lie in memory that are strewn without a pattern."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.runtime.kernels.formats.base import STRIP, Layout, aligned, in_pieces, ranks
from secateur.runtime.kernels.formats.dtypes import Floats, decoded

__all__ = ["Scattered"]

CHUNK = 256
"""Outputs that are sorted together, at most: more leave fewer zeros to fill up, fewer can be shared by more threads."""

PIECE_OF_SCATTERED = 128
"""Inputs of a piece."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scattered(Layout):
    """Weights that are not zero: chunk of outputs by chunk, within it piece of inputs by piece, within it by strips.

    A strip has sixteen outputs of a chunk, those with about as many weights in this piece: the chunk's outputs are
    sorted by that, so that few zeros fill up the shorter ones.

    Attributes:
        starts: For each strip, how many sixteens of weights lie before it, and at the end how many there are.
        columns: For each weight, its input within the piece.
        order: For each strip, its outputs within the chunk.
        chunk: Outputs of a chunk.

    Example:
        >>> Scattered.of(np.eye(3, dtype=np.float32)).to_dense()
        array([[1., 0., 0.],
               [0., 1., 0.],
               [0., 0., 1.]], dtype=float32)
    """

    chunk: int

    @classmethod
    def of(cls, weight_OI: Floats) -> Scattered:
        """The weights that are not zero."""
        chunk = min(CHUNK, -(-len(weight_OI) // STRIP) * STRIP)
        pieces = in_pieces(weight_OI, chunk, PIECE_OF_SCATTERED)
        nonzero = pieces != 0
        counts = nonzero.sum(axis=2, dtype=np.int64)
        order = np.argsort(-counts, axis=1, kind="stable")
        longest = np.take_along_axis(counts, order, 1).reshape(-1, STRIP).max(axis=1)
        starts = np.zeros(len(longest) + 1, np.int64)
        np.cumsum(longest, out=starts[1:])
        lines = order.reshape(-1) + np.repeat(np.arange(len(order)) * chunk, chunk)
        rows, found = np.nonzero(nonzero.reshape(-1, PIECE_OF_SCATTERED)[lines])
        slots = (starts[rows // STRIP] + ranks(counts.reshape(-1)[lines])) * STRIP + rows % STRIP
        columns, values = np.zeros(starts[-1] * STRIP, np.uint8), np.zeros(starts[-1] * STRIP, np.float32)
        columns[slots] = found
        values[slots] = pieces.reshape(-1, PIECE_OF_SCATTERED)[lines[rows], found]
        return cls(
            shape=(weight_OI.shape[0], weight_OI.shape[1]),
            chunk=chunk,
            starts=starts,
            columns=aligned(columns),
            values=aligned(values),
            order=aligned(order.reshape(-1).astype(np.uint8)),
        )

    def to_dense(self) -> Floats:
        """See `Layout.to_dense`."""
        outputs, inputs = self.shape
        count = -(-inputs // PIECE_OF_SCATTERED)
        strip = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts) * STRIP)
        lane = np.arange(len(self.values)) % STRIP
        chunk, piece = np.divmod(strip // (self.chunk // STRIP), count)
        row = chunk * self.chunk + self.order.reshape(-1)[strip * STRIP + lane]
        column = piece * PIECE_OF_SCATTERED + self.columns
        values = decoded(self.values)
        kept = values != 0
        dense = np.zeros((outputs, inputs), np.float32)
        dense[row[kept], column[kept]] = values[kept]
        return dense
