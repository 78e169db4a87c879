"""How a kernel's weights lie in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from secateur.errors import ConfigError
from secateur.runtime.kernels.blocks import FOLLOWING
from secateur.runtime.kernels.choice import Step, block_kernel, block_steps, most_vectors
from secateur.runtime.kernels.kernel import Kernel
from secateur.runtime.kernels.numbers import NAMES, Floats, decoded, encoded, stored
from secateur.runtime.kernels.panels import Panel

__all__ = ["Blocks", "Layout", "TileLayout", "aligned", "in_pieces", "ranks"]

CACHE_LINE = 64
"""Bytes that a cache holds or does not hold together."""

MOST_IN_SHORT = 1 << 16
"""Numbers that an index of two bytes tells apart."""


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that begins with a cache line.

    Example:
        >>> aligned(np.ones(3)).ctypes.data % 64
        0
    """
    memory = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def in_pieces(weight_OI: Floats, chunk: int, piece: int) -> Floats:
    """A weight with zeros behind its ends, as (chunks × pieces, outputs of a chunk, inputs of a piece)."""
    outputs, inputs = weight_OI.shape
    padded = np.zeros((-(-outputs // chunk) * chunk, -(-inputs // piece) * piece), np.float32)
    padded[:outputs, :inputs] = weight_OI
    tiles = padded.reshape(-1, chunk, padded.shape[1] // piece, piece).transpose(0, 2, 1, 3)
    return tiles.reshape(-1, chunk, piece)


def ranks(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For runs that lie one behind another, the place of each element in its run.

    Example:
        >>> ranks(np.array([2, 0, 3]))
        array([0, 1, 0, 1, 2])
    """
    behind = np.cumsum(lengths)
    total = int(behind[-1]) if len(behind) else 0
    return np.arange(total) - np.repeat(behind - lengths, lengths)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layout(ABC):
    """The weights that stay, and where they belong.

    Attributes:
        shape: (O, I) of the weight.
        starts: For each run of weights, how many lie before it, and at the end how many there are; each layout counts
            in its own way.
        columns: Where weights belong among the inputs.
        values: The weights; see `numbers.WEIGHT_DTYPES`.
        scales: For int8, what the numbers of each output are to be multiplied with; else empty.
        order: Where weights belong among the outputs, if that is not clear from their order; else empty.
        rest: For weights in halves, what `in_halves` leaves, which kernels do not read; else empty.
    """

    shape: tuple[int, int]
    starts: npt.NDArray[np.int64]
    columns: npt.NDArray[Any]
    values: npt.NDArray[Any]
    scales: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    order: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    rest: npt.NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))

    @abstractmethod
    def steps(self, element: str, rows: int) -> list[Step]:
        """The kernels for a batch, one after another; `element`: LLVM's type of activations."""

    @abstractmethod
    def over(self, panel: Panel) -> Kernel:
        """The kernel for panels of any kind."""

    @property
    @abstractmethod
    def most_vectors(self) -> int:
        """Vectors of a panel at most."""

    @abstractmethod
    def to_dense(self) -> Floats:
        """The weight with its zeros, without scales."""

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """What a kernel reads, in the order of `kernel.ARRAYS`."""
        return self.starts, self.columns, self.values, self.scales, self.order

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(array.nbytes for array in (*self.arrays, self.rest))

    @property
    def stored(self) -> str:
        """LLVM's type of the weights."""
        return stored(self.values)

    def as_dtype(self, dtype: str, scales: Floats) -> Self:
        """The same, stored as another type; its numbers are whole if that is int8."""
        return replace(self, values=aligned(encoded(self.values, dtype)), scales=scales)


class TileLayout(Layout):
    """For tiles of bfloat16: multiplied with rows of its own type alone, and with no images."""

    __slots__ = ()

    @property
    @abstractmethod
    def element(self) -> str:
        """LLVM's type of the activations: ``float`` if the weights are in halves, else ``bfloat``."""

    @property
    def most_vectors(self) -> int:
        """See `Layout.most_vectors`."""
        return 4

    def over(self, panel: Panel) -> Kernel:
        """See `Layout.over`: of images there is none."""
        raise ConfigError(f"a weight for tiles is multiplied with rows, found {panel}.")

    def refuse_others(self, element: str) -> None:
        """Refuse activations of another type than the weights'.

        Raises:
            ConfigError: They are.
        """
        if element != self.element:
            own, found = NAMES[self.element], NAMES[element]
            raise ConfigError(f"a weight for tiles of {own} needs activations of it, found {found}.")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Blocks(Layout):
    """Blocks of N outputs × M inputs that are not all zero, row of blocks by row of blocks.

    Attributes:
        block: (N, M).
        starts: For each row of blocks, how many blocks lie before it, and at the end how many there are.
        columns: For each block, how many blocks fit to the left of it, and zeros for kernels that look ahead.
        values: The numbers: blocks × M inputs × N outputs.

    Example:
        >>> blocks = Blocks.of(np.array([[0, 1], [0, 2]], np.float32), (2, 1))
        >>> blocks.columns[:1], blocks.values.ravel()
        (array([1], dtype=uint16), array([1., 2.], dtype=float32))
    """

    block: tuple[int, int]

    @classmethod
    def of(cls, weight_OI: Floats, block: tuple[int, int]) -> Blocks:
        """The blocks of a weight that they tile."""
        (outputs, inputs), (rows, cols) = weight_OI.shape, block
        tiles = weight_OI.reshape(outputs // rows, rows, inputs // cols, cols)
        keep: npt.NDArray[np.bool_] = np.any(tiles, axis=(1, 3))
        starts = np.zeros(len(keep) + 1, np.int64)
        np.cumsum(keep.sum(axis=1), out=starts[1:])
        row, column = np.nonzero(keep)
        index = np.uint16 if inputs // cols <= MOST_IN_SHORT else np.uint32
        values = tiles.transpose(0, 2, 3, 1)[row, column]
        return cls(
            shape=(outputs, inputs),
            block=block,
            starts=starts,
            columns=aligned(np.append(column, np.zeros(FOLLOWING)).astype(index)),
            values=aligned(values),
        )

    def steps(self, element: str, rows: int) -> list[Step]:
        """See `Layout.steps`."""
        types = f"i{8 * self.columns.itemsize}", element, self.stored
        return block_steps(self.block, self.shape[1], types, rows)

    def over(self, panel: Panel) -> Kernel:
        """See `Layout.over`."""
        return block_kernel(self.block, (f"i{8 * self.columns.itemsize}", self.stored), panel)

    @property
    def most_vectors(self) -> int:
        """See `Layout.most_vectors`."""
        return 5 if most_vectors(4) == 4 else 2

    def to_dense(self) -> Floats:
        """See `Layout.to_dense`."""
        (outputs, inputs), (rows, cols) = self.shape, self.block
        tiles = np.zeros((outputs // rows, inputs // cols, cols, rows), np.float32)
        row = np.repeat(np.arange(outputs // rows), np.diff(self.starts))
        tiles[row, self.columns[: len(row)]] = decoded(self.values)
        return tiles.transpose(0, 3, 1, 2).reshape(outputs, inputs)
