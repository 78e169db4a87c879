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
"""Bits of a score that one pass over the stream decides."""

BINS = 1 << DIGIT


@dataclass(frozen=True, slots=True)
class Scores:
    """The unit scores of one layer as a stream that can be read any number of times.

    Attributes:
        name: The layer, for error messages.
        chunks: Starts the stream: one-dimensional arrays in order of the units' index, or see `stride`.
        count: Number of units.
        alive: One boolean per unit, ``False`` if it is pruned already and stays so; ``None``: none is.
        wide: Compare in float64 instead of float32.
        stride: Distance in the stream between units of consecutive index.
    """

    name: str
    chunks: Callable[[], Iterator[Array]]
    count: int
    alive: Array | None = None
    wide: bool = False
    stride: int = 1

    def read(self) -> Iterator[tuple[Array, Array | None]]:
        """Yield scores of one dtype, and whether they are alive, chunk by chunk."""
        start = 0
        for chunk in self.chunks():
            xp = namespace(chunk)
            stop = start + chunk.shape[0]
            scores = xp.astype(chunk, xp.float64 if self.wide else xp.float32, copy=False)
            yield scores, None if self.alive is None else self.alive[start:stop]
            start = stop

    def refuse_nan(self) -> None:
        """Raise `ScoreError` if a living unit has the score ``nan``."""
        for scores, alive in self.read():
            xp = namespace(scores)
            if math.isnan(float(xp.max(scores))) and (alive is None or bool(xp.any(xp.isnan(scores) & alive))):
                raise ScoreError(
                    f"layer {self.name!r}: scores must be numbers, found nan. Check its weights and gradients for nan."
                )

    def count_pruned(self) -> int:
        """Return how many units are pruned already."""
        return 0 if self.alive is None else self.count - count_true(self.alive)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where the ranking of a layer is cut.

    Attributes:
        threshold: The score of the last unit that is pruned; ``None``: only units that are pruned already.
        pruned: Total number of pruned units.
        below: Pruned units with a lower score.
        tied: Units with exactly this score; of them, the lowest indices stay.
    """

    threshold: float | None
    pruned: int
    below: int
    tied: int


def unify_precision(layers: Mapping[str, Scores]) -> dict[str, Scores]:
    """Compare all layers in float64 if any has float64 scores."""
    wide = any(_has_float64(layer) for layer in layers.values())
    return {name: replace(layer, wide=wide) for name, layer in layers.items()}


def find_cuts(layers: Mapping[str, Scores], counts: Mapping[str, int]) -> dict[str, Cut]:
    """Cut each layer on its own, so that exactly `counts` of its units are pruned, or more if they are already.

    Raises:
        ScoreError: A score is ``nan``.
    """
    return {name: _cut([layers[name]], count, [0], [layers[name].count])[0] for name, count in counts.items()}


def find_global_cuts(
    layers: Mapping[str, Scores], total: int, at_least: Mapping[str, int], at_most: Mapping[str, int]
) -> dict[str, Cut]:
    """Cut all layers at one common score, so that exactly `total` units are pruned, within each layer's bounds.

    Ties are pruned in later layers first, and in each layer at higher indices first. A layer that would exceed a bound
    is cut at the bound, and the others compensate.

    Args:
        layers: The layers, in the order that breaks ties.
        total: Units to prune, between the sums of the bounds.
        at_least: Minimum number of units to prune per layer.
        at_most: Maximum number of units to prune per layer.

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
    """Return one boolean per unit, ``True`` where it stays."""
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
    """Keep the first `count` flags that are ``True``, by index."""
    xp, by_index = namespace(flags), transpose_flat(flags, stride)
    first = by_index & (xp.cumulative_sum(xp.astype(by_index, xp.int32)) <= count)
    return transpose_flat(first, flags.shape[0] // stride)


def _cut(layers: list[Scores], total: int, lower: list[int], upper: list[int]) -> list[Cut]:
    """Find the key at which the clamped counts of `layers` first reach `total`, digit by digit, and cut there."""
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
            break  # No score is that low, only units that are pruned already.
        prefix = digit - BINS // 2 if prefix is None else (prefix << DIGIT) | digit
    threshold = None if prefix is None else _score_of(prefix, wide=wide)
    return _with_ties(threshold, total, below, tied, lower, upper)


def _with_ties(
    threshold: float | None, total: int, below: list[int], tied: list[int], lower: list[int], upper: list[int]
) -> list[Cut]:
    """Distribute the tied units that `total` still needs, the last layer first."""
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
    """Counts per digit, for the digits that occur."""

    digits: Counts
    cumulative: Counts

    def up_to(self, digit: int) -> int:
        """Return how many scores have this digit or a lower one."""
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
    """Return sort keys, without those of units that are pruned already if that is faster."""
    if alive is None or not isinstance(scores, np.ndarray) or 2 * count_true(alive) > alive.shape[0]:
        return sort_keys(scores, alive)
    # Indexing with booleans is several times slower in NumPy.
    return sort_keys(scores.take(np.flatnonzero(alive)), None)


def sort_keys(scores: Array, alive: Array | None) -> Array:
    """Map scores to integers of the same order: -inf … -0.0 = 0.0 … inf; units that are pruned already come first."""
    xp = namespace(scores)
    wide = scores.dtype == xp.float64
    bits = scores.view(xp.int64 if wide else xp.int32)
    lowest = _lowest(wide=wide)
    if bool(xp.any(bits < 0)):
        bits = xp.where(bits < 0, lowest - bits, bits)
    if alive is None:
        return bits
    # The minimum with the lowest integer, or with one less, which wraps around to the highest. NumPy's `where` is
    # several times slower on random masks.
    return xp.minimum(bits, lowest - xp.astype(alive, bits.dtype))


def _score_of(key: int, *, wide: bool) -> float:
    """Return the score whose sort key is `key`."""
    lowest = _lowest(wide=wide)
    bits: Any = (np.int64 if wide else np.int32)(key if key >= 0 else lowest - key)
    return float(bits.view(np.float64 if wide else np.float32))


def _lowest(*, wide: bool) -> int:
    return -(1 << 63) if wide else -(1 << 31)


def _has_float64(layer: Scores) -> bool:
    first = next(iter(layer.chunks()))
    return bool(first.dtype == namespace(first).float64)


def _beyond_infinity(layer: Scores, counts: Counts) -> bool:
    """Whether leading digits of ``nan``, or of an infinity, occur."""
    infinity = (0x7FF0 if layer.wide else 0x7F80) + BINS // 2
    return bool(counts[infinity:].sum() + counts[: BINS - infinity + 1].sum() > layer.count_pruned())


def _first(holds: Callable[[int], bool]) -> int:
    """Return the smallest digit for which `holds`; it holds for all greater ones."""
    low, high = 0, BINS - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
