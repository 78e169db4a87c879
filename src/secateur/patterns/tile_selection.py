"""Select the weights of square tiles so that every row and every column keeps the same number.

Scores are converted to integers, so that sums are exact, and ties are ties. The work is done in NumPy for every
framework.

Legend: T tiles, R rows, C and D columns of a tile, P pruned or kept before, 1 or -1.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_TILE", "select_tiles"]

Integers = npt.NDArray[np.int64]

Flags = npt.NDArray[np.bool_]

MAX_TILE = 64
"""Largest M for which the integers are more precise than float32."""

MAX_ENUMERATED = 4
"""Largest M for which all masks are compared; 2:4 has 90, and 4:8 has 116,963,796,250."""

CHUNK = 1 << 16
"""Weights processed at a time, few enough for the cache of a core."""

FAR = 1 << 61
"""The loss of a move that is impossible: more than any sum of possible ones."""


def select_tiles(scores_TRC: npt.NDArray[Any], keep: int, priority_TRC: npt.NDArray[np.int8] | None = None) -> Flags:
    """Select `keep` weights of every row and every column of each tile, with the highest sum of scores.

    The sum is the maximum for scores that are rounded to 46 bits below the largest of their tile, or 26 for M = 64. Of
    equal sums, the mask that keeps lower indices is selected if M is at most `MAX_ENUMERATED`, and else always the same
    one.

    Args:
        scores_TRC: One score per weight; infinite ones count before all finite ones.
        keep: Number of weights to keep, less than the size of a tile.
        priority_TRC: 1: select the weight before all others; -1: after all others.

    Source:
        Hubara et al., "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
        Masks", arXiv:2102.08124, section 4: the maximum that its 2-approximation approaches.

    Examples:
        >>> select_tiles(np.array([[[5.0, 4.0], [4.0, 1.0]]]), 1)
        array([[[False,  True],
                [ True, False]]])
    """
    tiles, size, _ = scores_TRC.shape
    select = _compare_masks if size <= MAX_ENUMERATED else _balance_columns
    kept_TRC = np.empty(scores_TRC.shape, np.bool_)
    step = max(1, CHUNK // size**2)
    for chunk in (slice(start, start + step) for start in range(0, tiles, step)):
        priority = None if priority_TRC is None else priority_TRC[chunk]
        kept_TRC[chunk] = select(_to_integers(scores_TRC[chunk], priority), keep)
    return kept_TRC


def _to_integers(scores_TRC: npt.NDArray[Any], priority_TRC: npt.NDArray[np.int8] | None) -> Integers:
    """Scale scores by a power of two per tile, and round them. Priorities exceed infinities, which exceed the rest."""
    size = scores_TRC.shape[1]
    step = (2 * size**2 - 1).bit_length()  # more than the weights of two masks
    bits = 58 - 2 * step - (size - 1).bit_length()  # sums along paths of `_move_weights` stay below FAR
    wide = scores_TRC.astype(np.float64)
    is_finite = np.isfinite(wide)
    finite = np.where(is_finite, wide, 0.0)
    exponent_T11 = np.frexp(np.abs(finite).max(axis=(1, 2), keepdims=True))[1]
    values: Integers = np.rint(np.ldexp(finite, bits - exponent_T11)).astype(np.int64)
    if not is_finite.all():
        signs = np.isposinf(wide).astype(np.int64) - np.isneginf(wide)  # nan is refused elsewhere
        values += signs << (bits + step)
    return values if priority_TRC is None else values + (priority_TRC.astype(np.int64) << (bits + 2 * step))


@cache
def _list_masks(size: int, keep: int) -> list[tuple[int, ...]]:
    """List all masks of a tile, those that keep lower indices first, as the number of the columns of each row."""
    rows = list(combinations(range(size), keep))
    found: list[tuple[int, ...]] = []

    def extend(mask: tuple[int, ...], room: tuple[int, ...]) -> None:
        if len(mask) == size:
            found.append(mask)
        for number, columns in enumerate(rows if len(mask) < size else ()):
            if all(room[column] for column in columns):
                extend((*mask, number), tuple(left - (column in columns) for column, left in enumerate(room)))

    extend((), (keep,) * size)
    return found


def _compare_masks(values_TRC: Integers, keep: int) -> Flags:
    """Select the best of all masks of a tile."""
    size = values_TRC.shape[1]
    values_RCT = np.ascontiguousarray(values_TRC.transpose(1, 2, 0))
    choices = list(combinations(range(size), keep))
    sums = [[row[list(columns)].sum(axis=0) for columns in choices] for row in values_RCT]
    masks = _list_masks(size, keep)
    best, chosen = np.full(len(values_TRC), np.iinfo(np.int64).min), np.zeros(len(values_TRC), np.int64)
    partial: list[Any] = [0]
    for number, mask in enumerate(masks):
        before = masks[number - 1] if number else ()
        shared = next((row for row, pair in enumerate(zip(mask, before, strict=False)) if pair[0] != pair[1]), 0)
        del partial[shared + 1 :]
        for row in range(shared, size):
            partial.append(partial[-1] + sums[row][mask[row]])
        np.putmask(chosen, partial[-1] > best, number)
        np.maximum(best, partial[-1], out=best)
    row_flags = np.zeros((comb(size, keep), size), np.bool_)
    for number, columns in enumerate(choices):
        row_flags[number, list(columns)] = True
    flags: Flags = row_flags[np.array(masks)[chosen]]
    return flags


def _balance_columns(values_TRC: Integers, keep: int) -> Flags:
    """Select the best of every row, and then move weights between columns at the lowest loss, until all columns fit.

    These are successive shortest paths for a flow of minimum cost: after each of them, no mask with the same numbers of
    weights in its columns has a higher sum.
    """
    order = np.argsort(-values_TRC, axis=2, kind="stable")
    kept_TRC = np.zeros(values_TRC.shape, np.bool_)
    np.put_along_axis(kept_TRC, order[:, :, :keep], True, axis=2)
    while len(unbalanced := np.flatnonzero((kept_TRC.sum(axis=1) != keep).any(axis=1))):
        kept_TRC[unbalanced] = _move_weights(values_TRC[unbalanced], kept_TRC[unbalanced], keep)
    return kept_TRC


def _move_weights(values_TRC: Integers, kept_TRC: Flags, keep: int) -> Flags:
    """Move one weight of each tile from a column with too many to one with too few, by moves in one or more rows."""
    loads_TC = kept_TRC.sum(axis=1)
    losses_TCD, rows_TCD = _find_moves(values_TRC, kept_TRC)
    distance_TC = np.where(loads_TC > keep, 0, FAR)
    origin_TC = np.full(loads_TC.shape, -1)
    while True:
        through_TCD = distance_TC[:, :, None] + losses_TCD
        shorter_TC = through_TCD.min(axis=1)
        if not (is_shorter := shorter_TC < distance_TC).any():
            break
        origin_TC = np.where(is_shorter, through_TCD.argmin(axis=1), origin_TC)
        distance_TC = np.minimum(distance_TC, shorter_TC)
    tiles, column = np.arange(len(values_TRC)), np.where(loads_TC < keep, distance_TC, 2 * FAR).argmin(axis=1)
    moved_TRC = kept_TRC.copy()
    while len(tiles):
        origin = origin_TC[tiles, column]
        moves = origin >= 0
        tiles, column, origin = tiles[moves], column[moves], origin[moves]
        row = rows_TCD[tiles, origin, column]
        moved_TRC[tiles, row, origin], moved_TRC[tiles, row, column] = False, True
        column = origin
    return moved_TRC


def _find_moves(values_TRC: Integers, kept_TRC: Flags) -> tuple[Integers, Integers]:
    """Return the lowest loss of a move from column C to column D in one row, and that row."""
    shape = (len(values_TRC), values_TRC.shape[2], values_TRC.shape[2])
    losses_TCD, rows_TCD = np.full(shape, FAR), np.zeros(shape, np.int64)
    for row in range(values_TRC.shape[1]):
        values_TC, kept_TC = values_TRC[:, row], kept_TRC[:, row]
        is_possible = kept_TC[:, :, None] & ~kept_TC[:, None, :]
        loss_TCD = np.where(is_possible, values_TC[:, :, None] - values_TC[:, None, :], FAR)
        np.putmask(rows_TCD, loss_TCD < losses_TCD, row)
        np.minimum(losses_TCD, loss_TCD, out=losses_TCD)
    return losses_TCD, rows_TCD
