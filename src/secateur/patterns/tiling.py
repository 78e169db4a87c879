"""Tilings of weights into units that are pruned as a whole.

Legend: O output channels, K kernel positions, I input channels of one group; a *grid* counts units along each of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from secateur._array import Array, concat_chunks, namespace, repeat, transpose_flat
from secateur.errors import LayerError
from secateur.patterns.peers import Peers
from secateur.patterns.reduction import Reduction
from secateur.patterns.selection import Scores

__all__ = ["BlockTiling", "OutputsLastTiling", "Tiling", "Units", "intersect", "list_parts", "widen_dtype"]

CHUNK = 1 << 18
"""Weights processed at a time: few enough for the cache of a core, enough to hide the overhead of calls."""


class Tiling(ABC):
    """Tile one weight, viewed as an (O, K, I) array, into `count` units.

    Attributes:
        count: Number of units.
        unit_size: Weights per unit.
        stride: Distance in the stream of scores between units of consecutive index; 1, except for `OutputsLastTiling`.
        run: The length of each chunk of the stream is a multiple of this.
    """

    count: int
    unit_size: int
    stride: int = 1
    run: int = 1

    @property
    def reduces_all(self) -> bool:
        """Whether `unit_scores` passes every score to the reduction.

        If so, the reduction may also compute the scores, chunk by chunk in the cache of a core.
        """
        return False

    @property
    def span(self) -> int | None:
        """Number of consecutive input features (K·I, inputs fastest) that can be pruned independently of all others.

        ``None`` if there is no such number.
        """
        return None

    @property
    def channel_blocks(self) -> tuple[str, int] | None:
        """The pattern of equal blocks of channels that units consist of, and the blocks per unit.

        ``None`` if units are not sets of whole channels, adjacent or not.
        """
        return None

    @abstractmethod
    def unit_scores(self, scores: Array, reduction: Reduction) -> Iterator[Array]:
        """Yield the scores of the units in one-dimensional chunks, in order of their index unless there is a `stride`.

        Args:
            scores: One score per weight, of shape (O, K, I).
            reduction: Reduces the scores of a unit to one.
        """

    @abstractmethod
    def expand(self, keep: Array) -> Array:
        """Expand one boolean or factor per unit, of shape (count,), to one per weight, of shape (O, K, I)."""


@dataclass(frozen=True, slots=True)
class BlockTiling(Tiling):
    """Adjacent blocks of equal shape, numbered row by row.

    Attributes:
        shape: (O, K, I) of the weight.
        block: Size of a block along O, K and I; it divides the shape.
        is_outputs_last: Whether the weight is stored with output channels last, as masks then should be.

    Raises:
        LayerError: The blocks do not fit the shape.

    Examples:
        >>> BlockTiling((8, 1, 6), (4, 1, 1)).count
        12
    """

    shape: tuple[int, int, int]
    block: tuple[int, int, int]
    is_outputs_last: bool = False
    grid: tuple[int, int, int] = field(init=False)
    count: int = field(init=False)
    unit_size: int = field(init=False)

    def __post_init__(self) -> None:
        for axis, (length, step) in enumerate(zip(self.shape, self.block, strict=True)):
            if length % step:
                kind = ("output channels", "kernel positions", "input channels")[axis]
                raise LayerError(f"{length} {kind} are not a multiple of {step}")
        rows, positions, columns = (length // step for length, step in zip(self.shape, self.block, strict=True))
        object.__setattr__(self, "grid", (rows, positions, columns))
        object.__setattr__(self, "count", rows * positions * columns)
        object.__setattr__(self, "unit_size", self.block[0] * self.block[1] * self.block[2])

    @property
    def reduces_all(self) -> bool:
        """See `Tiling.reduces_all`; ``False`` for subclasses that override `unit_scores`."""
        return type(self).unit_scores is BlockTiling.unit_scores

    @property
    def span(self) -> int | None:
        """See `Tiling.span`; units of all output channels compete with all others."""
        is_far = self.block[1] > 1 and self.grid[2] > 1
        is_whole = self.grid[0] == 1 and self.shape[0] > 1
        return None if is_far or is_whole or self.grid[1:] == (1, 1) else self.block[2]

    def split_blocks(self, canonical: Array) -> Array:
        """Reshape an (O, K, I) array to (rows, O in block, positions, K in block, columns, I in block)."""
        rows, columns = canonical.shape[0] // self.block[0], canonical.shape[2] // self.block[2]
        return canonical.reshape((rows, self.block[0], self.grid[1], self.block[1], columns, self.block[2]))

    def unit_scores(self, scores: Array, reduction: Reduction) -> Iterator[Array]:
        """See `Tiling.unit_scores`; a chunk has several rows of blocks, or several columns if there is one row."""
        for chunk in self.chunks(scores):
            yield reduction(self.split_blocks(widen_dtype(chunk)), (1, 3, 5)).reshape((-1,))

    def expand(self, keep: Array) -> Array:
        """See `Tiling.expand`."""
        xp, order = namespace(keep), (1, 2, 0) if self.is_outputs_last else (0, 1, 2)
        expanded = xp.permute_dims(keep.reshape(self.grid), order)
        for axis in (2, 1, 0):  # the fastest axis first, while the array is small, and then whole rows
            if self.block[order[axis]] > 1:
                expanded = repeat(expanded, self.block[order[axis]], axis=axis)
        return xp.permute_dims(expanded, (2, 0, 1)) if self.is_outputs_last else expanded

    def chunks(self, canonical: Array) -> Iterator[Array]:
        """Yield the array in pieces of whole units, in order of their index."""
        axis = 0 if self.grid[0] > 1 or self.grid[1] > 1 else 2
        units = self.grid[axis]
        per_unit = self.count * self.unit_size // units
        step = max(1, CHUNK // per_unit) * self.block[axis]
        for start in range(0, self.shape[axis], step):
            run = slice(start, start + step)
            yield canonical[run] if axis == 0 else canonical[:, :, run]


@dataclass(frozen=True, slots=True)
class OutputsLastTiling(Tiling):
    """Single weights of a layer that stores output channels last, streamed in memory order.

    Indices still count output by output. Streaming by index would transpose the weight, which takes as long as ranking
    it.

    Attributes:
        shape: (O, K, I) of the weight.
        group: Number of consecutive weights along I that chunks do not split.

    Examples:
        >>> tiling = OutputsLastTiling((2, 1, 3))
        >>> tiling.stride
        2
    """

    shape: tuple[int, int, int]
    group: int = 1
    count: int = field(init=False)
    unit_size: int = field(init=False, default=1)
    stride: int = field(init=False)
    run: int = field(init=False)

    def __post_init__(self) -> None:
        outputs, positions, inputs = self.shape
        object.__setattr__(self, "count", outputs * positions * inputs)
        object.__setattr__(self, "stride", outputs)
        object.__setattr__(self, "run", outputs * self.group)

    @property
    def reduces_all(self) -> bool:
        """See `BlockTiling.reduces_all`."""
        return type(self).unit_scores is OutputsLastTiling.unit_scores

    def unit_scores(self, scores: Array, reduction: Reduction) -> Iterator[Array]:
        """See `Tiling.unit_scores`."""
        for chunk in self.chunks(scores):
            yield reduction(widen_dtype(chunk).reshape((-1, 1)), (1,)).reshape((-1,))

    def expand(self, keep: Array) -> Array:
        """See `Tiling.expand`."""
        return namespace(keep).permute_dims(keep.reshape((*self.shape[1:], self.shape[0])), (2, 0, 1))

    def chunks(self, canonical: Array) -> Iterator[Array]:
        """Yield the array in pieces of whole groups, as (K·I, O) matrices."""
        rows = namespace(canonical).permute_dims(canonical, (1, 2, 0)).reshape((-1, self.stride))
        step = max(1, CHUNK // self.run) * self.group
        for start in range(0, rows.shape[0], step):
            yield rows[start : start + step]


@dataclass(frozen=True, slots=True)
class Units:
    """Units that are numbered and ranked together, with parts in one or more layers.

    Usually there is one layer. Coupled units, such as attention heads or hidden channels, have parts in several layers:
    the scores of these parts are added, and they are pruned together. A layer can have parts of several such sets of
    units, of one along its output channels and of another along its input channels.

    Attributes:
        parts: Layer name → the tiling of that layer's weight.
        peers: The processes that hold the units, if this one holds a part of them.

    Raises:
        LayerError: The parts have different numbers of units.
    """

    parts: Mapping[str, Tiling]
    peers: Peers | None = None

    def __post_init__(self) -> None:
        counts = {name: tiling.count for name, tiling in self.parts.items()}
        if len(set(counts.values())) != 1:
            raise LayerError(f"coupled layers must have the same number of units, found {counts}")

    @property
    def count(self) -> int:
        """Number of units in this process."""
        return next(iter(self.parts.values())).count

    @property
    def total(self) -> int:
        """Number of units over all processes."""
        return self.count if self.peers is None else self.peers.count

    def add(self, count: int) -> int:
        """Return the sum of a count over all processes."""
        return count if self.peers is None else int(self.peers.add(np.array([count], np.int64))[0])

    @property
    def unit_size(self) -> int:
        """Weights per unit, over all parts."""
        return sum(tiling.unit_size for tiling in self.parts.values())

    @property
    def stride(self) -> int:
        """See `Tiling`; units with several parts are streamed in the order of their index."""
        return 1 if self._are_coupled else next(iter(self.parts.values())).stride

    @property
    def run(self) -> int:
        """See `Tiling`."""
        return next(iter(self.parts.values())).run

    def rank(self, name: str, chunks: Callable[[], Iterator[Array]], alive: Array | None) -> Scores:
        """Return a stream of scores, one per unit in this process; see `Scores`."""
        return Scores(name, chunks, self.total, alive, stride=self.stride, peers=self.peers)

    def scores(self, scores: Mapping[str, Array], reduction: Reduction) -> Iterator[Array]:
        """Yield one score per unit, in chunks; `scores` has an (O, K, I) array for each part."""
        streams = {name: tiling.unit_scores(scores[name], reduction) for name, tiling in self.parts.items()}
        if not self._are_coupled:
            (stream,) = streams.values()
            yield from stream
            return
        total, *others = (
            transpose_flat(concat_chunks(list(stream)), self.parts[name].stride) for name, stream in streams.items()
        )
        for part in others:
            total = total + part
        yield total

    def expand(self, keep: Array) -> dict[str, Array]:
        """Expand one boolean or factor per unit to one per weight, of shape (O, K, I), for each part."""
        return {
            name: tiling.expand(transpose_flat(keep, tiling.count // tiling.stride) if self._are_coupled else keep)
            for name, tiling in self.parts.items()
        }

    @property
    def _are_coupled(self) -> bool:
        return len(self.parts) > 1


def list_parts(units: Mapping[str, Units]) -> dict[str, dict[str, Tiling]]:
    """Return layer → name of units → the tiling of its weight into them.

    Examples:
        >>> units = Units({"fc": BlockTiling((2, 1, 2), (2, 1, 2))})
        >>> list(list_parts({"first": units, "second": units})["fc"])
        ['first', 'second']
    """
    parts: dict[str, dict[str, Tiling]] = {}
    for name, entry in units.items():
        for layer, tiling in entry.parts.items():
            parts.setdefault(layer, {})[name] = tiling
    return parts


def intersect(first: Array, second: Array) -> Array:
    """Combine two masks of a weight: a weight is kept if both keep it. Factors are multiplied.

    Examples:
        >>> import numpy as np
        >>> intersect(np.array([True, True]), np.array([True, False]))
        array([ True, False])
    """
    return first & second if first.dtype == namespace(first).bool else first * second


def widen_dtype(scores: Array) -> Array:
    """Convert to at least float32, because frameworks round and overflow sums in shorter types differently."""
    xp = namespace(scores)
    return scores if scores.dtype in (xp.float32, xp.float64) else xp.astype(scores, xp.float32)
