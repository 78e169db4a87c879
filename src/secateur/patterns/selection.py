"""Select exactly as many units as requested, in constant memory.

The scores of a layer are a stream that can be read repeatedly. A histogram of their leading bits shows which bin
contains the requested rank. A second pass counts the scores in that bin by their next bits, and so on until all bits
are known. Histograms of layers or processes can be added, so that a global ranking does not need all scores in one
place.
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
from secateur.patterns.peers import Peers

__all__ = ["Cut", "Scores", "find_cuts", "find_global_cuts", "keep_above", "to_sort_keys", "unify_precision"]

Counts = npt.NDArray[np.int64]

DIGIT = 16
"""Bits of the threshold that one pass over the stream determines."""

BINS = 1 << DIGIT

BLOCK = 1 << 8
"""Bins per block of a histogram. Processes first add up whole blocks, and then the bins of the block with the rank."""

MAX_INT32 = np.iinfo(np.int32).max
"""Largest number of units whose histogram processes exchange as 32-bit integers."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The unit scores of one layer, as a stream that can be read repeatedly.

    Attributes:
        name: The layer, for error messages.
        chunks: Starts the stream of one-dimensional arrays, in order of the index of units unless there is a `stride`.
        count: Number of units, over all processes.
        alive: One boolean per unit, ``False`` if it is already pruned and stays pruned; ``None``: no unit is.
        wide: Whether to compare in float64 instead of float32.
        stride: Distance in the stream between units of consecutive index.
        peers: The processes that hold the units, of which this one streams its own; ``None``: it streams all of them.
    """

    name: str
    chunks: Callable[[], Iterator[Array]]
    count: int
    alive: Array | None = None
    wide: bool = False
    stride: int = 1
    peers: Peers | None = None

    def read(self) -> Iterator[tuple[Array, Array | None]]:
        """Yield the scores in one dtype and the flags `alive`, chunk by chunk."""
        start = 0
        for chunk in self.chunks():
            xp = namespace(chunk)
            stop = start + chunk.shape[0]
            scores = xp.astype(chunk, xp.float64 if self.wide else xp.float32, copy=False)
            yield scores, None if self.alive is None else self.alive[start:stop]
            start = stop

    def refuse_nan(self) -> None:
        """Raise `ScoreError` if the score of a unit that is not pruned yet is ``nan``, on all processes."""
        if self.add(any(_find_nan(scores, alive) for scores, alive in self.read())):
            raise ScoreError(
                f"layer {self.name!r}: scores must be numbers, found nan. Check its weights and gradients for nan."
            )

    def count_pruned(self) -> int:
        """Return how many units are already pruned, over all processes."""
        return 0 if self.alive is None else self.count - self.add(count_true(self.alive))

    def add(self, count: int) -> int:
        """Return the sum of a count over all processes."""
        return int(count) if self.peers is None else int(self.peers.add(np.array([count], np.int64))[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The point at which the ranking of a layer is cut.

    Attributes:
        threshold: The highest score that is pruned; ``None``: only units that are already pruned.
        pruned: Total number of pruned units.
        below: Number of pruned units with a lower score.
        tied: Number of units with exactly this score, of which the lowest indices are kept.
    """

    threshold: float | None
    pruned: int
    below: int
    tied: int


def unify_precision(layers: Mapping[str, Scores]) -> dict[str, Scores]:
    """Set all layers to be compared in float64 if any of them has float64 scores."""
    wide = any(_has_float64(layer) for layer in layers.values())
    return {name: replace(layer, wide=wide) for name, layer in layers.items()}


def find_cuts(layers: Mapping[str, Scores], counts: Mapping[str, int]) -> dict[str, Cut]:
    """Cut each layer separately, so that exactly `counts` units are pruned, or more if they are already pruned.

    Raises:
        ScoreError: A score is ``nan``.
    """
    return {
        name: _find_common_cuts([layers[name]], count, [0], [layers[name].count])[0] for name, count in counts.items()
    }


def find_global_cuts(
    layers: Mapping[str, Scores], total: int, at_least: Mapping[str, int], at_most: Mapping[str, int]
) -> dict[str, Cut]:
    """Cut all layers at a common score, so that exactly `total` units are pruned, within the bounds of each layer.

    Ties are pruned in later layers first, and at higher indices first within a layer. A layer that would exceed a bound
    is cut at the bound, and the others compensate.

    Args:
        layers: The layers, in the order that breaks ties.
        total: Number of units to prune, between the sums of the bounds.
        at_least: Minimum number of units to prune per layer.
        at_most: Maximum number of units to prune per layer.

    Raises:
        ScoreError: A score is ``nan``.
    """
    names = list(layers)
    lower = [max(at_least[name], layers[name].count_pruned()) for name in names]
    upper = [max(at_most[name], low) for name, low in zip(names, lower, strict=True)]
    total = min(max(total, sum(lower)), sum(upper))
    cuts = dict(zip(names, _find_common_cuts(list(layers.values()), total, lower, upper), strict=True))
    outside = {name: cut.pruned for name, cut in cuts.items() if not cut.below <= cut.pruned <= cut.below + cut.tied}
    return cuts | find_cuts({name: layers[name] for name in outside}, outside)


def keep_above(layer: Scores, cut: Cut) -> Array:
    """Return one boolean per unit, ``True`` = kept."""
    ties_kept = cut.tied - (cut.pruned - cut.below)
    if layer.stride > 1 and cut.threshold is not None and 0 < ties_kept < cut.tied:
        above = keep_above(layer, replace(cut, pruned=cut.below + cut.tied))
        tied = keep_above(layer, replace(cut, pruned=cut.below)) & ~above
        return above | _keep_first(tied, ties_kept, layer.stride)
    parts, seen = [], 0
    if layer.peers is not None and cut.threshold is not None and 0 < ties_kept < cut.tied:
        tied = sum(count_true(_find_ties(scores, cut.threshold, alive)) for scores, alive in layer.read())
        seen = layer.peers.count_before(tied)
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
        tied = _find_ties(scores, threshold, alive)
        rank = xp.cumulative_sum(xp.astype(tied, xp.int32)) + seen
        keep = (scores > threshold) | (tied & (rank <= ties_kept))
        seen = int(rank[-1])
    return (keep if alive is None else keep & alive), seen


def _find_ties(scores: Array, threshold: float, alive: Array | None) -> Array:
    return scores == threshold if alive is None else (scores == threshold) & alive


def _find_nan(scores: Array, alive: Array | None) -> bool:
    xp = namespace(scores)
    return math.isnan(float(xp.max(scores))) and (alive is None or bool(xp.any(xp.isnan(scores) & alive)))


def _keep_first(flags: Array, count: int, stride: int) -> Array:
    """Keep the first `count` flags that are ``True``, by index."""
    xp, by_index = namespace(flags), transpose_flat(flags, stride)
    first = by_index & (xp.cumulative_sum(xp.astype(by_index, xp.int32)) <= count)
    return transpose_flat(first, flags.shape[0] // stride)


def _find_common_cuts(layers: list[Scores], total: int, lower: list[int], upper: list[int]) -> list[Cut]:
    """Cut at the lowest key, found digit by digit, for which the clamped counts of `layers` reach `total`."""
    wide = layers[0].wide
    below = [0] * len(layers)
    prefix: int | None = None
    for shift in range((64 if wide else 32) - DIGIT, -1, -DIGIT):
        histograms = [_compute_histogram(layer, shift, prefix) for layer in layers]

        def count_reached(digit: int, histograms: list[Any] = histograms, below: list[int] = below) -> int:
            counts = (start + histogram.count_up_to(digit) for start, histogram in zip(below, histograms, strict=True))
            return sum(min(max(count, low), high) for count, low, high in zip(counts, lower, upper, strict=True))

        digit = _find_first_digit(lambda digit: count_reached(digit) >= total)
        tied = [histogram.count_up_to(digit) - histogram.count_up_to(digit - 1) for histogram in histograms]
        below = [start + histogram.count_up_to(digit - 1) for start, histogram in zip(below, histograms, strict=True)]
        if prefix is None and digit == 0:
            break  # Only units that are already pruned have this digit.
        prefix = digit - BINS // 2 if prefix is None else (prefix << DIGIT) | digit
    threshold = None if prefix is None else _to_score(prefix, wide=wide)
    return _distribute_ties(threshold, total, below, tied, lower, upper)


def _distribute_ties(
    threshold: float | None, total: int, below: list[int], tied: list[int], lower: list[int], upper: list[int]
) -> list[Cut]:
    """Prune tied units until `total` is reached, the last layer first."""
    pruned = [min(max(count, low), high) for count, low, high in zip(below, lower, upper, strict=True)]
    missing = total - sum(pruned)
    for index in reversed(range(len(pruned))):
        maximum = min(max(below[index] + tied[index], lower[index]), upper[index])
        added = min(maximum - pruned[index], missing)
        pruned[index] += added
        missing -= added
    return [
        Cut(threshold=threshold, pruned=count, below=start, tied=same)
        for count, start, same in zip(pruned, below, tied, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Cumulative counts of the digits that occur."""

    digits: Counts
    cumulative: Counts

    def count_up_to(self, digit: int) -> int:
        """Return how many scores have this digit or a lower one."""
        index = int(np.searchsorted(self.digits, digit, side="right"))
        return int(self.cumulative[index - 1]) if index else 0


class _SharedHistogram:
    """The sum of the histograms of several processes, which only exchange the bins that are needed.

    All of them must ask for the same digits in the same order.

    Args:
        counts: The histogram of this process.
        layer: The scores.
        peers: The processes.
    """

    def __init__(self, counts: Counts, layer: Scores, peers: Peers) -> None:
        blocks = counts.astype(np.int32 if layer.count <= MAX_INT32 else np.int64).reshape((-1, BLOCK))
        self._blocks, self._peers = blocks, peers
        self.block_counts = peers.add(blocks.sum(axis=1, dtype=blocks.dtype)).astype(np.int64)
        self._cumulative = np.cumsum(self.block_counts)
        self._known: dict[int, Counts] = {}

    def count_up_to(self, digit: int) -> int:
        """See `_Histogram.count_up_to`. Except for the last digit of a block, this is collective."""
        block, position = divmod(digit, BLOCK)
        if position == BLOCK - 1:
            return int(self._cumulative[block]) if digit >= 0 else 0
        if block not in self._known:
            self._known[block] = np.cumsum(self._peers.add(self._blocks[block]).astype(np.int64))
        return int(self._cumulative[block] - self.block_counts[block] + self._known[block][position])


def _compute_histogram(layer: Scores, shift: int, prefix: int | None) -> _Histogram | _SharedHistogram:
    counts = np.zeros(BINS, dtype=np.int64)
    for scores, alive in layer.read():
        xp = namespace(scores)
        keys = _make_keys(scores, alive)
        if prefix is None:
            counts[0] += scores.shape[0] - keys.shape[0]
            digits = (keys >> shift) + BINS // 2
        else:
            digits = (keys[(keys >> (shift + DIGIT)) == prefix] >> shift) & (BINS - 1)
        if digits.shape[0]:
            counts += to_numpy(xp.bincount(digits, minlength=BINS))
    if layer.peers is not None:
        shared = _SharedHistogram(counts, layer, layer.peers)
        if prefix is None and shared.block_counts[0] + shared.block_counts[-1] > layer.count_pruned():
            layer.refuse_nan()
        return shared
    if prefix is None and _may_have_nan(layer, counts):
        layer.refuse_nan()
    digits = np.flatnonzero(counts)
    return _Histogram(digits, np.cumsum(counts[digits]))


def _make_keys(scores: Array, alive: Array | None) -> Array:
    """Make the sort keys; leave out units that are already pruned if that is faster."""
    if alive is None or not isinstance(scores, np.ndarray) or 2 * count_true(alive) > alive.shape[0]:
        return to_sort_keys(scores, alive)
    # Indexing with booleans is several times slower in NumPy.
    return to_sort_keys(scores.take(np.flatnonzero(alive)), None)


def to_sort_keys(scores: Array, alive: Array | None) -> Array:
    """Map scores to integers of the same order: already pruned units, then -inf … -0.0 = 0.0 … inf."""
    xp = namespace(scores)
    wide = scores.dtype == xp.float64
    bits = scores.view(xp.int64 if wide else xp.int32)
    lowest = _get_lowest_key(wide=wide)
    if bool(xp.any(bits < 0)):
        bits = xp.where(bits < 0, lowest - bits, bits)
    if alive is None:
        return bits
    # Pruned units get the minimum of their key and the lowest integer; for all others, the lowest integer minus 1 wraps
    # around to the highest. NumPy's `where` is several times slower on random masks.
    return xp.minimum(bits, lowest - xp.astype(alive, bits.dtype))


def _to_score(key: int, *, wide: bool) -> float:
    """Return the score whose sort key is `key`."""
    lowest = _get_lowest_key(wide=wide)
    bits: Any = (np.int64 if wide else np.int32)(key if key >= 0 else lowest - key)
    return float(bits.view(np.float64 if wide else np.float32))


def _get_lowest_key(*, wide: bool) -> int:
    return -(1 << 63) if wide else -(1 << 31)


def _has_float64(layer: Scores) -> bool:
    first = next(iter(layer.chunks()))
    return bool(first.dtype == namespace(first).float64)


def _may_have_nan(layer: Scores, counts: Counts) -> bool:
    """Whether scores have the leading digits of ``nan``, or of an infinity."""
    infinity = (0x7FF0 if layer.wide else 0x7F80) + BINS // 2
    return bool(counts[infinity:].sum() + counts[: BINS - infinity + 1].sum() > layer.count_pruned())


def _find_first_digit(holds: Callable[[int], bool]) -> int:
    """Return the smallest digit for which `holds` is true, assuming that it is true for all greater digits."""
    block = _find_first(lambda block: holds(block * BLOCK + BLOCK - 1), 0, BINS // BLOCK - 1)
    return _find_first(holds, block * BLOCK, block * BLOCK + BLOCK - 1)


def _find_first(holds: Callable[[int], bool], low: int, high: int) -> int:
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
