"""Which units to prune: exact, and in a constant amount of memory whatever their number.

A layer's scores come as a stream that can be read again. A histogram over the leading bits of the scores says in which
bin the wanted rank lies; a second look counts only what fell into that bin, by its next bits, and so on until every
bit is known. Histograms add, over layers as over processes, so one ranking over everything needs no common copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur._array import Array, concat_chunks, count_true, namespace, to_numpy, transpose_flat
from secateur.errors import ScoreError

__all__ = ["Cut", "Scores", "find_cuts", "find_global_cuts", "keep_above", "sort_keys", "unify_precision"]

Counts = npt.NDArray[np.int64]

DIGIT = 16
"""Bits of a score that one look at the stream decides."""

BINS = 1 << DIGIT


@dataclass(frozen=True, slots=True)
class Scores:
    """The unit scores of one layer as a stream that can be read any number of times.

    Attributes:
        name: The layer, for error messages.
        chunks: Starts the stream: one-dimensional arrays in order of the unit's index, or see `stride`.
        count: Units in the stream.
        alive: One boolean per unit, ``False`` where it was pruned before and must stay so; ``None``: all alive.
        wide: Compare in float64 instead of float32.
        stride: Places in the stream from a unit to the next by index.
    """

    name: str
    chunks: Callable[[], Iterator[Array]]
    count: int
    alive: Array | None = None
    wide: bool = False
    stride: int = 1

    def read(self) -> Iterator[tuple[Array, Array | None]]:
        """Scores in one dtype and whether they are alive, chunk by chunk."""
        start = 0
        for chunk in self.chunks():
            xp = namespace(chunk)
            stop = start + chunk.shape[0]
            scores = xp.astype(chunk, xp.float64 if self.wide else xp.float32, copy=False)
            yield scores, None if self.alive is None else self.alive[start:stop]
            start = stop

    def refuse_nan(self) -> None:
        """Raise `ScoreError` if a unit that is alive has the score ``nan``."""
        for scores, alive in self.read():
            xp = namespace(scores)
            if math.isnan(float(xp.max(scores))) and (alive is None or bool(xp.any(xp.isnan(scores) & alive))):
                raise ScoreError(
                    f"layer {self.name!r}: scores must be numbers, found nan. Look for nan in its weights or gradients."
                )

    def count_pruned(self) -> int:
        """How many units are not alive."""
        return 0 if self.alive is None else self.count - count_true(self.alive)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where one layer's ranking is cut.

    Attributes:
        threshold: The score of the last unit to go; ``None``: only what was pruned before goes.
        pruned: How many units go in all.
        below: How many of them have a smaller score.
        tied: How many units have this very score; of those that stay, the lowest indices do.
    """

    threshold: float | None
    pruned: int
    below: int
    tied: int


def unify_precision(layers: Mapping[str, Scores]) -> dict[str, Scores]:
    """The same layers, all compared in float64 if one of them has float64 scores."""
    wide = any(_has_float64(layer) for layer in layers.values())
    return {name: replace(layer, wide=wide) for name, layer in layers.items()}


def find_cuts(layers: Mapping[str, Scores], counts: Mapping[str, int]) -> dict[str, Cut]:
    """Cut each layer by itself, so that exactly `counts` of its units go (or those pruned before, if more).

    Raises:
        ScoreError: A score is ``nan``.
    """
    return {name: _cut([layers[name]], count, [0], [layers[name].count])[0] for name, count in counts.items()}


def find_global_cuts(
    layers: Mapping[str, Scores], total: int, at_least: Mapping[str, int], at_most: Mapping[str, int]
) -> dict[str, Cut]:
    """Cut all layers at one common score, so that exactly `total` units go, within each layer's bounds.

    Among units of one score the later layer loses first, and in a layer the higher index. A layer that the common
    score would take out of its bounds is cut at the bound instead, and the others make up for it.

    Args:
        layers: The layers in the order in which ties go.
        total: Units to prune; between the sums of the two bounds.
        at_least: Units that each layer loses at the least.
        at_most: Units that each layer loses at the most.

    Raises:
        ScoreError: A score is ``nan``.
    """
    names = list(layers)
    lower = [max(at_least[name], layers[name].count_pruned()) for name in names]
    upper = [max(at_most[name], low) for name, low in zip(names, lower, strict=True)]
    total = min(max(total, sum(lower)), sum(upper))
    cuts = dict(zip(names, _cut(list(layers.values()), total, lower, upper), strict=True))
    outside = {name: cut.pruned for name, cut in cuts.items() if not cut.below <= cut.pruned <= cut.below + cut.tied}
    return cuts | find_cuts({name: layers[name] for name in outside}, outside)


def keep_above(layer: Scores, cut: Cut) -> Array:
    """One boolean per unit, ``True`` where it stays."""
    ties_kept = cut.tied - (cut.pruned - cut.below)
    if layer.stride > 1 and cut.threshold is not None and 0 < ties_kept < cut.tied:
        above = keep_above(layer, replace(cut, pruned=cut.below + cut.tied))
        tied = keep_above(layer, replace(cut, pruned=cut.below)) & ~above
        return above | _first_by_index(tied, ties_kept, layer.stride)
    parts, seen = [], 0
    for scores, alive in layer.read():
        keep, seen = _keep_chunk(scores, cut, ties_kept, seen, alive)
        parts.append(keep)
    return concat_chunks(parts)


def _keep_chunk(scores: Array, cut: Cut, ties_kept: int, seen: int, alive: Array | None) -> tuple[Array, int]:
    xp, threshold = namespace(scores), cut.threshold
    if threshold is None:
        return (xp.ones_like(scores, dtype=xp.bool) if alive is None else alive), seen
    if ties_kept == 0:
        keep = scores > threshold
    elif ties_kept == cut.tied:
        keep = scores >= threshold
    else:
        tied = scores == threshold if alive is None else (scores == threshold) & alive
        rank = xp.cumulative_sum(xp.astype(tied, xp.int32)) + seen
        keep = (scores > threshold) | (tied & (rank <= ties_kept))
        seen = int(rank[-1])
    return (keep if alive is None else keep & alive), seen


def _first_by_index(flags: Array, count: int, stride: int) -> Array:
    """So many of the flags that are ``True``, the lowest by index."""
    xp, by_index = namespace(flags), transpose_flat(flags, stride)
    first = by_index & (xp.cumulative_sum(xp.astype(by_index, xp.int32)) <= count)
    return transpose_flat(first, flags.shape[0] // stride)


def _cut(layers: list[Scores], total: int, lower: list[int], upper: list[int]) -> list[Cut]:
    """The cuts of `layers` at the one key where their clamped counts first reach `total`, digit by digit."""
    wide = layers[0].wide
    below = [0] * len(layers)
    prefix: int | None = None
    for shift in range((64 if wide else 32) - DIGIT, -1, -DIGIT):
        histograms = [_histogram(layer, shift, prefix) for layer in layers]

        def count_reached(digit: int, histograms: list[_Histogram] = histograms, below: list[int] = below) -> int:
            counts = (start + histogram.up_to(digit) for start, histogram in zip(below, histograms, strict=True))
            return sum(min(max(count, low), high) for count, low, high in zip(counts, lower, upper, strict=True))

        digit = _first(lambda digit: count_reached(digit) >= total)
        tied = [histogram.up_to(digit) - histogram.up_to(digit - 1) for histogram in histograms]
        below = [start + histogram.up_to(digit - 1) for start, histogram in zip(below, histograms, strict=True)]
        if prefix is None and digit == 0:
            break  # No score is that low, only what was pruned before.
        prefix = digit - BINS // 2 if prefix is None else (prefix << DIGIT) | digit
    threshold = None if prefix is None else _score_of(prefix, wide=wide)
    return _with_ties(threshold, total, below, tied, lower, upper)


def _with_ties(
    threshold: float | None, total: int, below: list[int], tied: list[int], lower: list[int], upper: list[int]
) -> list[Cut]:
    """Give the layers what `total` needs of the tied units, the last layer first."""
    pruned = [min(max(count, low), high) for count, low, high in zip(below, lower, upper, strict=True)]
    missing = total - sum(pruned)
    for index in reversed(range(len(pruned))):
        most = min(max(below[index] + tied[index], lower[index]), upper[index])
        more = min(most - pruned[index], missing)
        pruned[index] += more
        missing -= more
    return [
        Cut(threshold=threshold, pruned=count, below=start, tied=same)
        for count, start, same in zip(pruned, below, tied, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Counts per digit, only of the digits that occur."""

    digits: Counts
    cumulative: Counts

    def up_to(self, digit: int) -> int:
        """How many have this digit or a smaller one."""
        index = int(np.searchsorted(self.digits, digit, side="right"))
        return int(self.cumulative[index - 1]) if index else 0


def _histogram(layer: Scores, shift: int, prefix: int | None) -> _Histogram:
    counts = np.zeros(BINS, dtype=np.int64)
    for scores, alive in layer.read():
        xp = namespace(scores)
        keys = _keys_to_count(scores, alive)
        if prefix is None:
            counts[0] += scores.shape[0] - keys.shape[0]
            digits = (keys >> shift) + BINS // 2
        else:
            digits = (keys[(keys >> (shift + DIGIT)) == prefix] >> shift) & (BINS - 1)
        if digits.shape[0]:
            counts += to_numpy(xp.bincount(digits, minlength=BINS))
    if prefix is None and _beyond_infinity(layer, counts):
        layer.refuse_nan()
    digits = np.flatnonzero(counts)
    return _Histogram(digits, np.cumsum(counts[digits]))


def _keys_to_count(scores: Array, alive: Array | None) -> Array:
    """Sort keys; of what was pruned before none, where that is quicker."""
    if alive is None or not isinstance(scores, np.ndarray) or 2 * count_true(alive) > alive.shape[0]:
        return sort_keys(scores, alive)
    # Indexing by booleans takes NumPy several times as long.
    return sort_keys(scores.take(np.flatnonzero(alive)), None)


def sort_keys(scores: Array, alive: Array | None) -> Array:
    """Integers in the order of the scores: -inf … -0.0 = 0.0 … inf, and what was pruned before below all."""
    xp = namespace(scores)
    wide = scores.dtype == xp.float64
    bits = scores.view(xp.int64 if wide else xp.int32)
    lowest = _lowest(wide=wide)
    if bool(xp.any(bits < 0)):
        bits = xp.where(bits < 0, lowest - bits, bits)
    if alive is None:
        return bits
    # A ceiling of the lowest integer, or one below it, which wraps round to the highest: NumPy's `where` takes several
    # times as long on masks without order.
    return xp.minimum(bits, lowest - xp.astype(alive, bits.dtype))


def _score_of(key: int, *, wide: bool) -> float:
    """The score whose sort key is `key`."""
    lowest = _lowest(wide=wide)
    bits: Any = (np.int64 if wide else np.int32)(key if key >= 0 else lowest - key)
    return float(bits.view(np.float64 if wide else np.float32))


def _lowest(*, wide: bool) -> int:
    return -(1 << 63) if wide else -(1 << 31)


def _has_float64(layer: Scores) -> bool:
    first = next(iter(layer.chunks()))
    return bool(first.dtype == namespace(first).float64)


def _beyond_infinity(layer: Scores, counts: Counts) -> bool:
    """Whether leading digits occur that ``nan`` has, and perhaps an infinity."""
    infinity = (0x7FF0 if layer.wide else 0x7F80) + BINS // 2
    return bool(counts[infinity:].sum() + counts[: BINS - infinity + 1].sum() > layer.count_pruned())


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest digit for which `holds`, which stays true once it is."""
    low, high = 0, BINS - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
