"""How weights lie in memory of which many are kept, for many rows of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.base import STRIP, Layout, aligned, in_pieces, ranks
from secateur.runtime.kernels.formats.dtypes import Floats, decoded

__all__ = ["PAIR", "SLOTS", "Paired"]

PAIR = 2
"""Outputs that are computed beside one another, and weights of a slot."""

SLOTS = STRIP // PAIR
"""Slots of sixteen weights; a pair has a multiple of it."""

CHUNK = 128
"""Outputs among which partners are found, at most."""

PIECE_OF_PAIRED = 64
"""Inputs of a piece: with 128 rows, their activations take 32 KiB."""

TOGETHER = 64
"""Pieces of chunks whose outputs are paired at once, for memory's sake."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Paired(Layout):
    """Weights that are not zero: chunk of outputs by chunk, within it piece of inputs by piece, within it by pairs.

    Each piece has pairs of its own, of outputs that have many inputs in common. A pair is a run of slots of two
    weights, one of each output. In the first slots both have the same input; in the rest each has its own.

    Attributes:
        starts: For each pair, how many sixteens of weights lie before it, and at the end how many there are.
        columns: For each weight, its input within the piece.
        values: The weights, and zeros that fill up: to as many for both outputs of a pair, and to whole sixteens.
        order: For each pair, its two outputs within the chunk and how many slots share their input.
        chunk: Outputs of a chunk.

    Example:
        >>> paired = Paired.of(np.array([[1, 2, 0], [3, 0, 4]], np.float32))
        >>> paired.order[0], paired.columns[:2], paired.values[:2]
        (array([0, 1, 1], dtype=uint8), array([[0, 0],
               [1, 2]], dtype=uint8), array([[1., 3.],
               [2., 4.]], dtype=float32))
    """

    chunk: int

    @classmethod
    def of(cls, weight_OI: Floats) -> Paired:
        """The weights that are not zero."""
        chunk = min(CHUNK, -(-len(weight_OI) // STRIP) * STRIP)
        pieces = in_pieces(weight_OI, chunk, PIECE_OF_PAIRED)
        slabs = range(0, len(pieces), TOGETHER)
        partners = np.concatenate([partnered(pieces[begin : begin + TOGETHER] != 0) for begin in slabs])
        pairs = np.take_along_axis(pieces, partners[:, :, None], 1).reshape(-1, PAIR, PIECE_OF_PAIRED)
        kept = pairs != 0
        both = kept.all(axis=1)
        alone = kept & ~both[:, None]
        shared, own = both.sum(axis=1, dtype=np.int64), alone.sum(axis=2, dtype=np.int64)
        starts = np.zeros(len(pairs) + 1, np.int64)
        np.cumsum(-(-(shared + own.max(axis=1)) // SLOTS), out=starts[1:])
        before = starts * SLOTS
        columns, values = np.zeros((before[-1], PAIR), np.uint8), np.zeros((before[-1], PAIR), np.float32)
        pair, column = np.nonzero(both)
        slots = before[pair] + ranks(shared)
        columns[slots], values[slots] = column[:, None], pairs[pair, :, column]
        pair, side, column = np.nonzero(alone)
        slots = before[pair] + shared[pair] + ranks(own.reshape(-1))
        columns[slots, side], values[slots, side] = column, pairs[pair, side, column]
        return cls(
            shape=(weight_OI.shape[0], weight_OI.shape[1]),
            chunk=chunk,
            starts=starts,
            columns=aligned(columns),
            values=aligned(values),
            order=aligned(np.column_stack([partners.reshape(-1, PAIR), shared]).astype(np.uint8)),
        )

    def to_dense(self) -> Floats:
        """See `Layout.to_dense`."""
        outputs, inputs = self.shape
        pair = np.repeat(np.arange(len(self.order)), np.diff(self.starts) * SLOTS)
        chunk, piece = np.divmod(pair // (self.chunk // PAIR), -(-inputs // PIECE_OF_PAIRED))
        row = chunk[:, None] * self.chunk + self.order[pair, :PAIR]
        column = piece[:, None] * PIECE_OF_PAIRED + self.columns
        values = decoded(self.values)
        kept = values != 0
        dense = np.zeros((outputs, inputs), np.float32)
        dense[row[kept], column[kept]] = values[kept]
        return dense


def partnered(nonzero: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For each of some tiles (tiles, outputs, inputs), its outputs, partner beside partner.

    Each output that is left takes the one with which it shares most inputs; the pairs that share most come first, so
    that one pair takes about as long as the next.

    Example:
        >>> partnered(np.array([[[1, 0], [0, 1], [0, 1], [1, 0]]], bool))
        array([[0, 3, 1, 2]])
    """
    numbers = nonzero.astype(np.float32)
    common = numbers @ numbers.transpose(0, 2, 1)
    tiles, outputs, _ = common.shape
    tile = np.arange(tiles)
    free = np.ones((tiles, outputs), bool)
    pairs = np.empty((tiles, outputs // PAIR, PAIR), np.int64)
    for number in range(outputs // PAIR):
        pairs[:, number, 0] = first = free.argmax(axis=1)
        free[tile, first] = False
        pairs[:, number, 1] = second = np.where(free, common[tile, first], -1).argmax(axis=1)
        free[tile, second] = False
    shared = common[tile[:, None], pairs[:, :, 0], pairs[:, :, 1]]
    order = np.argsort(-shared, axis=1, kind="stable")
    return np.take_along_axis(pairs, order[:, :, None], 1).reshape(tiles, outputs)
