"""Store weights with unstructured sparsity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.runtime.kernels.formats.base import (
    STRIP,
    WeightFormat,
    copy_aligned,
    number_within_runs,
    split_into_pieces,
)
from secateur.runtime.kernels.formats.dtypes import Floats, decode

__all__ = ["UNSTRUCTURED_PIECE", "UnstructuredFormat"]

MAX_CHUNK = 256
"""Largest number of outputs to sort together: more need less padding, fewer can be split among more threads."""

UNSTRUCTURED_PIECE = 128
"""Number of inputs in a piece."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class UnstructuredFormat(WeightFormat):
    """Nonzero weights in sorted strips: chunk by chunk of outputs, then piece by piece of inputs, then by strips.

    A strip consists of sixteen outputs of a chunk, with interleaved weights. The outputs of a chunk are sorted by their
    number of weights in the piece, so that a strip needs little padding, as in the SELL-C-sigma format.

    Attributes:
        starts: For each strip, the number of vectors of sixteen weights before it, and the total at the end.
        columns: For each weight, its input in the piece.
        order: For each strip, its outputs in the chunk.
        chunk: Number of outputs in a chunk.

    Examples:
        >>> UnstructuredFormat.from_dense(np.eye(3, dtype=np.float32)).to_dense()
        array([[1., 0., 0.],
               [0., 1., 0.],
               [0., 0., 1.]], dtype=float32)
    """

    chunk: int

    @classmethod
    def from_dense(cls, weight_OI: Floats) -> UnstructuredFormat:
        """Pack the nonzero weights."""
        chunk = min(MAX_CHUNK, -(-len(weight_OI) // STRIP) * STRIP)
        pieces = split_into_pieces(weight_OI, chunk, UNSTRUCTURED_PIECE)
        is_kept = pieces != 0
        counts = is_kept.sum(axis=2, dtype=np.int64)
        order = np.argsort(-counts, axis=1, kind="stable")
        strip_lengths = np.take_along_axis(counts, order, 1).reshape(-1, STRIP).max(axis=1)
        starts = np.zeros(len(strip_lengths) + 1, np.int64)
        np.cumsum(strip_lengths, out=starts[1:])
        lines = order.reshape(-1) + np.repeat(np.arange(len(order)) * chunk, chunk)
        rows, cols = np.nonzero(is_kept.reshape(-1, UNSTRUCTURED_PIECE)[lines])
        slots = (starts[rows // STRIP] + number_within_runs(counts.reshape(-1)[lines])) * STRIP + rows % STRIP
        columns, values = np.zeros(starts[-1] * STRIP, np.uint8), np.zeros(starts[-1] * STRIP, np.float32)
        columns[slots] = cols
        values[slots] = pieces.reshape(-1, UNSTRUCTURED_PIECE)[lines[rows], cols]
        return cls(
            shape=(weight_OI.shape[0], weight_OI.shape[1]),
            chunk=chunk,
            starts=starts,
            columns=copy_aligned(columns),
            values=copy_aligned(values),
            order=copy_aligned(order.reshape(-1).astype(np.uint8)),
        )

    def to_dense(self) -> Floats:
        """See `WeightFormat.to_dense`."""
        outputs, inputs = self.shape
        pieces = -(-inputs // UNSTRUCTURED_PIECE)
        strip = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts) * STRIP)
        lane = np.arange(len(self.values)) % STRIP
        chunk, piece = np.divmod(strip // (self.chunk // STRIP), pieces)
        row = chunk * self.chunk + self.order.reshape(-1)[strip * STRIP + lane]
        column = piece * UNSTRUCTURED_PIECE + self.columns
        values = decode(self.values)
        is_kept = values != 0
        dense = np.zeros((outputs, inputs), np.float32)
        dense[row[is_kept], column[is_kept]] = values[is_kept]
        return dense
