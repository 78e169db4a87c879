"""Store pairs of outputs that share inputs, for dense N:M patterns and large batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.base import (
    STRIP,
    WeightFormat,
    copy_aligned,
    number_within_runs,
    split_into_pieces,
)
from secateur.runtime.kernels.formats.dtypes import Floats, decode

__all__ = ["OUTPUT_PAIR_PIECE", "PAIR", "SLOTS", "OutputPairFormat", "pair_outputs"]

PAIR = 2
"""Number of outputs in a pair, and of weights in a slot."""

SLOTS = STRIP // PAIR
"""Number of slots with sixteen weights. The length of each pair is a multiple of it."""

MAX_CHUNK = 128
"""Largest number of outputs that are paired with each other."""

OUTPUT_PAIR_PIECE = 64
"""Number of inputs in a piece, whose activations take 32 KiB for 128 rows."""

PIECES_AT_ONCE = 64
"""Number of pieces whose outputs are paired at once, to limit memory."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class OutputPairFormat(WeightFormat):
    """Nonzero weights of pairs of outputs: chunk by chunk of outputs, then piece by piece of inputs, then by pairs.

    Each piece pairs the outputs that share the most inputs, so that kernels load an activation once for two products. A
    pair is a sequence of slots with two weights, one of each output. In the first slots, both weights have the same
    input.

    Attributes:
        starts: For each pair, the number of vectors of sixteen weights before it, and the total at the end.
        columns: For each weight, its input in the piece.
        values: The weights. They are padded with zeros, so that both outputs of a pair have the same number of weights,
            and the pair consists of whole vectors.
        order: For each pair, its two outputs in the chunk, and the number of slots that share their input.
        chunk: Number of outputs in a chunk.

    Examples:
        >>> pairs = OutputPairFormat.from_dense(np.array([[1, 2, 0], [3, 0, 4]], np.float32))
        >>> pairs.order[0], pairs.columns[:2], pairs.values[:2]
        (array([0, 1, 1], dtype=uint8), array([[0, 0],
               [1, 2]], dtype=uint8), array([[1., 3.],
               [2., 4.]], dtype=float32))
    """

    chunk: int

    @classmethod
    def from_dense(cls, weight_OI: Floats) -> OutputPairFormat:
        """Pack the nonzero weights."""
        chunk = min(MAX_CHUNK, -(-len(weight_OI) // STRIP) * STRIP)
        pieces = split_into_pieces(weight_OI, chunk, OUTPUT_PAIR_PIECE)
        batches = range(0, len(pieces), PIECES_AT_ONCE)
        partners = np.concatenate([pair_outputs(pieces[begin : begin + PIECES_AT_ONCE] != 0) for begin in batches])
        pairs = np.take_along_axis(pieces, partners[:, :, None], 1).reshape(-1, PAIR, OUTPUT_PAIR_PIECE)
        is_kept = pairs != 0
        is_shared = is_kept.all(axis=1)
        is_single = is_kept & ~is_shared[:, None]
        shared_counts, single_counts = is_shared.sum(axis=1, dtype=np.int64), is_single.sum(axis=2, dtype=np.int64)
        starts = np.zeros(len(pairs) + 1, np.int64)
        np.cumsum(-(-(shared_counts + single_counts.max(axis=1)) // SLOTS), out=starts[1:])
        first_slots = starts * SLOTS
        columns, values = np.zeros((first_slots[-1], PAIR), np.uint8), np.zeros((first_slots[-1], PAIR), np.float32)
        pair, column = np.nonzero(is_shared)
        slots = first_slots[pair] + number_within_runs(shared_counts)
        columns[slots], values[slots] = column[:, None], pairs[pair, :, column]
        pair, side, column = np.nonzero(is_single)
        slots = first_slots[pair] + shared_counts[pair] + number_within_runs(single_counts.reshape(-1))
        columns[slots, side], values[slots, side] = column, pairs[pair, side, column]
        return cls(
            shape=(weight_OI.shape[0], weight_OI.shape[1]),
            chunk=chunk,
            starts=starts,
            columns=copy_aligned(columns),
            values=copy_aligned(values),
            order=copy_aligned(np.column_stack([partners.reshape(-1, PAIR), shared_counts]).astype(np.uint8)),
        )

    def to_dense(self) -> Floats:
        """See `WeightFormat.to_dense`."""
        outputs, inputs = self.shape
        pair = np.repeat(np.arange(len(self.order)), np.diff(self.starts) * SLOTS)
        chunk, piece = np.divmod(pair // (self.chunk // PAIR), -(-inputs // OUTPUT_PAIR_PIECE))
        row = chunk[:, None] * self.chunk + self.order[pair, :PAIR]
        column = piece[:, None] * OUTPUT_PAIR_PIECE + self.columns
        values = decode(self.values)
        is_kept = values != 0
        dense = np.zeros((outputs, inputs), np.float32)
        dense[row[is_kept], column[is_kept]] = values[is_kept]
        return dense


def pair_outputs(is_nonzero: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Pair the outputs of each piece greedily by the number of inputs they share.

    Args:
        is_nonzero: Nonzero weights, of shape (pieces, outputs, inputs), with an even number of outputs.

    Returns:
        The outputs of each piece, of shape (pieces, outputs), with partners next to each other. Pairs are sorted by the
        number of shared inputs in descending order, so that consecutive pairs take about the same time.

    Examples:
        >>> pair_outputs(np.array([[[1, 0], [0, 1], [0, 1], [1, 0]]], bool))
        array([[0, 3, 1, 2]])
    """
    nonzero = is_nonzero.astype(np.float32)
    shared_counts = nonzero @ nonzero.transpose(0, 2, 1)
    pieces, outputs, _ = shared_counts.shape
    piece = np.arange(pieces)
    is_free = np.ones((pieces, outputs), bool)
    pairs = np.empty((pieces, outputs // PAIR, PAIR), np.int64)
    for number in range(outputs // PAIR):
        pairs[:, number, 0] = first = is_free.argmax(axis=1)
        is_free[piece, first] = False
        pairs[:, number, 1] = second = np.where(is_free, shared_counts[piece, first], -1).argmax(axis=1)
        is_free[piece, second] = False
    pair_counts = shared_counts[piece[:, None], pairs[:, :, 0], pairs[:, :, 1]]
    order = np.argsort(-pair_counts, axis=1, kind="stable")
    return np.take_along_axis(pairs, order[:, :, None], 1).reshape(pieces, outputs)
