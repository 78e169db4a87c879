"""Units whose output channels are divided over processes, all of which get the scores of all units.

Scores are reduced over output channels first, so a process sends the nodes of its own output channels; see
`secateur.patterns.row_tree`. A node has one number for each kernel position and input channel.

Legend: O output channels, K kernel positions, I input channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from secateur._array import Array, concat_chunks, namespace
from secateur.patterns.peers import RowPeers
from secateur.patterns.reduction import Reduction, ReductionSteps, find_steps
from secateur.patterns.row_tree import Combine, Node, combine_axes, list_nodes, merge_nodes, reduce_rows
from secateur.patterns.slices import INPUTS, OUTPUTS, ChannelTiling, CrossTiling, SliceTiling
from secateur.patterns.tiling import BlockTiling, Tiling, intersect, widen_dtype

__all__ = ["can_share", "share_tiling"]

Indices = npt.NDArray[np.int64]


def can_share(tiling: Tiling) -> bool:
    """Whether `share_tiling` accepts a tiling: its units are whole channels, or span all output channels.

    Examples:
        >>> [can_share(BlockTiling((8, 1, 4), block)) for block in ((8, 1, 1), (4, 1, 1))]
        [True, False]
    """
    if isinstance(tiling, CrossTiling | SliceTiling):
        return True
    return type(tiling) is BlockTiling and tiling.grid[0] == 1 and not tiling.is_outputs_last


def share_tiling(tiling: Tiling, peers: RowPeers) -> Tiling:
    """Return the tiling of the output channels in this process into all units of a weight.

    Args:
        tiling: The tiling of the whole weight.
        peers: The processes.
    """
    if isinstance(tiling, CrossTiling):
        return CrossTiling(_share_channels(tiling.outputs, peers), _share_channels(tiling.inputs, peers))
    if isinstance(tiling, BlockTiling):
        return _ColumnUnits(tiling, peers, BlockTiling((1, *tiling.shape[1:]), (1, *tiling.block[1:])))
    assert isinstance(tiling, SliceTiling)
    return _share_channels(tiling, peers)


def _share_channels(tiling: ChannelTiling, peers: RowPeers) -> ChannelTiling:
    assert isinstance(tiling, SliceTiling)
    if tiling.axis == OUTPUTS:
        return _RowUnits(tiling, peers)
    return _ColumnUnits(tiling, peers, SliceTiling((1, *tiling.shape[1:]), INPUTS, tiling.indices))


@dataclass(frozen=True, slots=True, eq=False)
class _SharedTiling(ChannelTiling):
    """Units of a weight whose output channels are divided over processes.

    Attributes:
        whole: The tiling of the whole weight.
        peers: The processes.
    """

    whole: BlockTiling | SliceTiling
    peers: RowPeers
    shape: tuple[int, int, int] = field(init=False)
    count: int = field(init=False)
    unit_size: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("shape", "count", "unit_size"):
            object.__setattr__(self, name, getattr(self.whole, name))

    @property
    def channel_blocks(self) -> tuple[str, int] | None:
        """See `Tiling.channel_blocks`."""
        return self.whole.channel_blocks

    @property
    def rows(self) -> range:
        """The output channels in this process."""
        return range(*self.peers.starts[self.peers.rank : self.peers.rank + 2])

    def fill_rows(self, flags: Array, columns: tuple[int, int]) -> Array:
        """Expand an array along the output channels in this process, and along other axes."""
        shape = (len(self.rows), *columns)
        return intersect(flags, namespace(flags).ones(shape, dtype=flags.dtype, device=getattr(flags, "device", None)))


@dataclass(frozen=True, slots=True, eq=False)
class _ColumnUnits(_SharedTiling):
    """Units with slices of all output channels.

    Attributes:
        inner: The tiling of one output channel.
    """

    inner: BlockTiling | SliceTiling

    def unit_scores(self, scores: Array, reduction: Reduction) -> Iterator[Array]:
        """See `Tiling.unit_scores`. This is collective."""
        steps = _get_steps(reduction)
        forest = _Forest(np.arange(self.shape[0])[None], self.peers)
        values = steps.prepare(widen_dtype(scores)).reshape((len(self.rows), -1))
        reduced = forest.reduce(values, steps.combine).reshape((1, *self.shape[1:]))
        yield from self.inner.unit_scores(reduced, _finish_by(steps, self.unit_size))

    def expand(self, keep: Array) -> Array:
        """See `Tiling.expand`."""
        return self.fill_rows(self.inner.expand(keep), (1, 1))


@dataclass(frozen=True, slots=True, eq=False)
class _RowUnits(_SharedTiling):
    """Units that own output channels, of one or of several processes."""

    whole: SliceTiling

    def unit_scores(self, scores: Array, reduction: Reduction) -> Iterator[Array]:
        """See `Tiling.unit_scores`. This is collective."""
        indices, ranks = self.whole.indices, range(len(self.peers.starts) - 1)
        owners = np.searchsorted(self.peers.starts, indices, side="right") - 1
        is_cut = (owners != owners[:, :1]).any(axis=1)
        owned = [np.flatnonzero(~is_cut & (owners[:, 0] == rank)) for rank in ranks]
        cut = np.flatnonzero(is_cut)
        parts = self._gather(self._score_own(scores, reduction, owned[self.peers.rank]), [len(own) for own in owned])
        if len(cut):
            parts.append(self._score_cut(scores, reduction, indices[cut]))
        places = np.argsort(np.concatenate([*owned, cut]))
        xp = namespace(scores)
        yield xp.take(concat_chunks(parts), xp.asarray(places, device=getattr(scores, "device", None)), axis=0)

    def expand(self, keep: Array) -> Array:
        """See `Tiling.expand`."""
        outputs, *columns = self.shape
        flags = SliceTiling((outputs, 1, 1), OUTPUTS, self.whole.indices).expand(keep)
        return self.fill_rows(flags[self.rows.start : self.rows.stop], (columns[0], columns[1]))

    def _score_own(self, scores: Array, reduction: Reduction, units: Indices) -> Array:
        """Return the scores of units that no other process has output channels of."""
        if not len(units):
            return widen_dtype(scores).reshape((-1,))[:0]
        tiling = SliceTiling(tuple(scores.shape), OUTPUTS, self.whole.indices[units] - self.rows.start)
        return concat_chunks(list(tiling.unit_scores(scores, reduction)))

    def _score_cut(self, scores: Array, reduction: Reduction, indices: Indices) -> Array:
        """Return the scores of units with output channels in several processes."""
        steps = _get_steps(reduction)
        values = steps.prepare(widen_dtype(scores)).reshape((len(self.rows), -1))
        reduced = _Forest(indices, self.peers).reduce(values, steps.combine)
        columns = reduced.reshape((len(indices), *self.shape[1:]))
        return _finish_by(steps, self.unit_size)(columns, (1, 2)).reshape((-1,))

    def _gather(self, own: Array, counts: list[int]) -> list[Array]:
        if not max(counts):
            return []
        gathered = self.peers.gather(_pad(own, max(counts)))
        return [part[:count] for part, count in zip(gathered, counts, strict=True)]


class _Run(NamedTuple):
    """Consecutive output channels of a unit in one process: number of the unit, and positions in the unit."""

    unit: int
    positions: range


class _Forest:
    """Units with output channels in several processes, each of which reduces its own.

    Args:
        indices: The output channels of each unit, of shape (units, channels per unit).
        peers: The processes.
    """

    def __init__(self, indices: Indices, peers: RowPeers) -> None:
        self.indices, self.peers = indices, peers
        self.count, self.length = indices.shape
        owners = np.searchsorted(peers.starts, indices, side="right") - 1
        self.runs: list[list[_Run]] = [[] for _ in peers.starts[1:]]
        for unit, owner in enumerate(owners):
            edges = [0, *np.flatnonzero(np.diff(owner)) + 1, self.length]
            for start, stop in pairwise(map(int, edges)):
                self.runs[owner[start]].append(_Run(unit, range(start, stop)))

    def reduce(self, values: Array, combine: Combine) -> Array:
        """Reduce the output channels of each unit, on every process; this is collective.

        Args:
            values: A row for each output channel in this process.
            combine: How two rows are reduced.

        Returns:
            Array of shape (units, columns of `values`).
        """
        xp, columns = namespace(values), values.shape[1]
        own = [
            node
            for run in self.runs[self.peers.rank]
            for node in reduce_rows(self._take(values, run), run.positions, self.length, combine).values()
        ]
        received = self._exchange(xp.stack(own) if own else values[:0])
        nodes: list[dict[Node, Any]] = [{} for _ in range(self.count)]
        for rank, runs in enumerate(self.runs):
            for number, (unit, node) in enumerate(self._list_keys(runs)):
                nodes[unit][node] = received[rank, number]
        roots = xp.stack([merge_nodes(each, self.length, combine) for each in nodes])
        return xp.concat(self.peers.gather(roots), axis=1)[:, :columns]

    def _exchange(self, own: Array) -> Array:
        """Send each process some columns of the nodes, and return its columns of the nodes of all processes."""
        xp, size = namespace(own), len(self.runs)
        most = max(len(self._list_keys(runs)) for runs in self.runs)
        width = -(-own.shape[1] // size)
        padded = _pad(xp.permute_dims(_pad(own, most), (1, 0)), size * width)
        parts = xp.permute_dims(padded.reshape((size, width, most)), (0, 2, 1))
        return self.peers.exchange(parts)

    def _list_keys(self, runs: list[_Run]) -> list[tuple[int, Node]]:
        return [(run.unit, node) for run in runs for node in list_nodes(run.positions, self.length)]

    def _take(self, values: Array, run: _Run) -> Array:
        """Return the rows of a run."""
        rows = self.indices[run.unit][run.positions.start : run.positions.stop] - self.peers.starts[self.peers.rank]
        if (np.diff(rows) == 1).all():
            return values[int(rows[0]) : int(rows[-1]) + 1]
        xp = namespace(values)
        return xp.take(values, xp.asarray(rows, device=getattr(values, "device", None)), axis=0)


def _get_steps(reduction: Reduction) -> ReductionSteps:
    steps = find_steps(reduction)
    assert steps is not None
    return steps


def _finish_by(steps: ReductionSteps, size: int) -> Reduction:
    """Return the reduction of values that are prepared, and in part combined, to units of `size` weights."""

    def finish(values: Array, axes: tuple[int, ...]) -> Array:
        return steps.finish(combine_axes(values, axes, steps.combine), size)

    return finish


def _pad(values: Array, length: int) -> Array:
    """Append rows of zeros up to a number of rows."""
    xp, missing = namespace(values), length - values.shape[0]
    if not missing:
        return values
    shape = (missing, *values.shape[1:])
    return xp.concat([values, xp.zeros(shape, dtype=values.dtype, device=getattr(values, "device", None))])
