"""How weights lie in memory for a processor that multiplies tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from secateur.runtime.kernels.formats.base import MOST_IN_SHORT, STRIP, TileLayout, aligned, ranks
from secateur.runtime.kernels.formats.dtypes import Floats, decoded, in_halves, whole

__all__ = ["TILE_INPUTS", "Tiled"]

TILE_INPUTS = 32
"""Of a tile: a line of the cache of bfloat16."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Tiled(TileLayout):
    """Sixteen outputs by sixteen, of which all have the same inputs: those that any of them keeps.

    Attributes:
        starts: For each sixteen outputs, how many tiles lie before them, and at the end how many there are.
        columns: For each tile, its 32 inputs, or 16 of weights in halves; what fills up the last tile of sixteen
            outputs repeats its last input.
        values: tiles × 16 outputs × 32 inputs, zeros included, or × 16 inputs × two halves.

    Example:
        >>> tiled = Tiled.of(np.eye(2, 5, k=3, dtype=np.float32))
        >>> tiled.columns[0, :4], tiled.values[0, :2, :2]
        (array([3, 4, 4, 4], dtype=uint16), array([[1., 0.],
               [0., 1.]], dtype=float32))
    """

    @classmethod
    def of(cls, weight_OI: Floats, width: int = TILE_INPUTS) -> Tiled:
        """The weights of inputs that any of sixteen outputs keeps; `width`: inputs of a tile."""
        outputs, inputs = weight_OI.shape
        padded = np.zeros((-(-outputs // STRIP), STRIP, inputs), np.float32)
        padded.reshape(-1, inputs)[:outputs] = weight_OI
        group, column = np.nonzero((padded != 0).any(axis=1))
        counts = np.bincount(group, minlength=len(padded))
        starts = np.zeros(len(padded) + 1, np.int64)
        np.cumsum(-(-counts // width), out=starts[1:])
        last = np.zeros(len(padded), np.int64)
        last[group] = column  # Columns ascend, so the last one stays.
        columns = np.repeat(last, np.diff(starts) * width)
        values = np.zeros((len(columns), STRIP), np.float32)
        slots = starts[group] * width + ranks(counts)
        columns[slots] = column
        values[slots] = padded[group, :, column]
        index = np.uint16 if inputs <= MOST_IN_SHORT else np.uint32
        return cls(
            shape=(outputs, inputs),
            starts=starts,
            columns=aligned(columns.reshape(-1, width).astype(index)),
            values=aligned(values.reshape(-1, width, STRIP).transpose(0, 2, 1)),
        )

    def in_halves(self) -> Tiled:
        """The same, each weight as two halves.

        Raises:
            LayerError: One has none; see `numbers.in_halves`.
        """
        halves, rest = in_halves(self.values)
        return replace(self, values=aligned(halves), rest=rest)

    @property
    def element(self) -> str:
        """See `TileLayout.element`."""
        return "float" if self.values.ndim == 4 else "bfloat"

    @property
    def index(self) -> str:
        """LLVM's type of a column."""
        return f"i{8 * self.columns.itemsize}"

    def to_dense(self) -> Floats:
        """See `Layout.to_dense`."""
        outputs, inputs = self.shape
        dense = np.zeros((len(self.starts) - 1, inputs, STRIP), np.float32)
        group = np.repeat(np.arange(len(dense)), np.diff(self.starts))
        # What fills up is zero, and belongs where a weight is.
        values = whole(self.values, self.rest) if self.element == "float" else decoded(self.values)
        np.add.at(dense, (group[:, None], self.columns), values.transpose(0, 2, 1))
        return dense.transpose(0, 2, 1).reshape(-1, inputs)[:outputs]
