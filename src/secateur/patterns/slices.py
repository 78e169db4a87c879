"""Tile a weight into units that own slices of its output channels, its input channels, or both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from secateur._array import Array, concat_chunks, namespace
from secateur.errors import LayerError
from secateur.patterns.reduction import Reduction
from secateur.patterns.tiling import CHUNK, Tiling, intersect, widen_dtype

__all__ = ["ChannelTiling", "CrossTiling", "SliceTiling"]

OUTPUTS, INPUTS = 0, 2


class ChannelTiling(Tiling):
    """Units that own whole output channels, or whole input channels.

    Attributes:
        shape: (O, K, I) of the weight.
    """

    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class SliceTiling(ChannelTiling):
    """Units that own whole output channels, or whole input channels. Channels without an owner are always kept.

    Attributes:
        shape: (O, K, I) of the weight.
        axis: 0 for output channels, 2 for input channels.
        indices: The channels of each unit, of shape (units, channels per unit).

    Raises:
        LayerError: A channel does not exist.

    Examples:
        Two units with two output channels each, the last channel belongs to none:

        >>> tiling = SliceTiling((5, 1, 3), 0, np.array([[0, 2], [1, 3]]))
        >>> tiling.count, tiling.unit_size
        (2, 6)
        >>> tiling.expand(np.array([True, False]))[:, 0, 0]
        array([ True, False,  True, False,  True])
    """

    shape: tuple[int, int, int]
    axis: int
    indices: npt.NDArray[np.int64]
    count: int = field(init=False)
    unit_size: int = field(init=False)

    def __post_init__(self) -> None:
        length = self.shape[self.axis]
        if self.indices.size and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < length:
            raise LayerError(f"channels must be in [0, {length}), found {int(self.indices.max())}")
        units, width = self.indices.shape
        object.__setattr__(self, "count", units)
        object.__setattr__(self, "unit_size", width * math.prod(self.shape) // length)

    @property
    def channel_blocks(self) -> tuple[str, int]:
        """See `Tiling.channel_blocks`."""
        owned = np.sort(self.indices, axis=1)
        is_start = np.diff(owned, axis=1, prepend=-2) != 1
        size = math.gcd(self.shape[self.axis], *(int(start) for start in owned[is_start]), owned.shape[1])
        for row, starts in zip(owned, is_start, strict=True):
            size = math.gcd(size, *(len(run) for run in np.split(row, np.flatnonzero(starts)[1:])))
        pattern = f"{size}xchannel" if self.axis == OUTPUTS else f"channelx{size}"
        return pattern, owned.shape[1] // size

    def unit_scores(self, scores: Array, reduction: Reduction) -> Iterator[Array]:
        """See `Tiling.unit_scores`."""
        xp, width = namespace(scores), self.indices.shape[1]
        step = max(1, CHUNK // self.unit_size)
        outputs, positions, inputs = self.shape
        for start in range(0, self.count, step):
            rows = self.indices[start : start + step]
            places = xp.asarray(rows.reshape(-1), device=getattr(scores, "device", None))
            owned = widen_dtype(xp.take(scores, places, axis=self.axis))
            if self.axis == OUTPUTS:
                yield reduction(owned.reshape((len(rows), width, positions, inputs)), (1, 2, 3)).reshape((-1,))
            else:
                yield reduction(owned.reshape((outputs, positions, len(rows), width)), (0, 1, 3)).reshape((-1,))

    def expand(self, keep: Array) -> Array:
        """See `Tiling.expand`."""
        xp, device = namespace(keep), getattr(keep, "device", None)
        owner = np.full(self.shape[self.axis], self.count)
        owner[self.indices.reshape(-1)] = np.repeat(np.arange(self.count), self.indices.shape[1])
        flags = xp.concat([keep, xp.ones((1,), dtype=keep.dtype, device=device)])
        along = [1, 1, 1]
        along[self.axis] = -1
        channels = xp.take(flags, xp.asarray(owner, device=device), axis=0).reshape(tuple(along))
        return intersect(channels, xp.ones(self.shape, dtype=keep.dtype, device=device))


@dataclass(frozen=True, slots=True)
class CrossTiling(Tiling):
    """Units that own output channels and input channels of the same weight.

    This is the case in a layer whose output is added to its input. Weights in an output channel of one unit and an
    input channel of another belong to both.

    Attributes:
        outputs: The output channels of each unit.
        inputs: The input channels of each unit.

    Examples:
        Each of two units owns one output channel and one input channel:

        >>> channels, shape = np.array([[0], [1]]), (2, 1, 2)
        >>> outputs, inputs = (SliceTiling(shape, axis, channels) for axis in (OUTPUTS, INPUTS))
        >>> tiling = CrossTiling(outputs, inputs)
        >>> tiling.count, tiling.unit_size
        (2, 3)
        >>> tiling.expand(np.array([True, False]))[:, 0]
        array([[ True, False],
               [False, False]])
    """

    outputs: ChannelTiling
    inputs: ChannelTiling
    count: int = field(init=False)
    unit_size: int = field(init=False)

    def __post_init__(self) -> None:
        rows, positions, columns = self.outputs.shape
        twice = self.outputs.unit_size * self.inputs.unit_size // (rows * positions * columns)
        object.__setattr__(self, "count", self.outputs.count)
        object.__setattr__(self, "unit_size", self.outputs.unit_size + self.inputs.unit_size - twice)

    def unit_scores(self, scores: Array, reduction: Reduction) -> Iterator[Array]:
        """See `Tiling.unit_scores`; the scores of a unit's output channels and of its input channels are added."""
        outputs, inputs = (
            concat_chunks(list(tiling.unit_scores(scores, reduction))) for tiling in (self.outputs, self.inputs)
        )
        yield outputs + inputs

    def expand(self, keep: Array) -> Array:
        """See `Tiling.expand`."""
        return intersect(self.outputs.expand(keep), self.inputs.expand(keep))
