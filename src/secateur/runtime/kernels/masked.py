"""How weights lie in memory that are decoded into tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.errors import ConfigError
from secateur.runtime.kernels.choice import Step, masked_steps
from secateur.runtime.kernels.chunks import STRIP
from secateur.runtime.kernels.kernel import Kernel
from secateur.runtime.kernels.layouts import Layout, aligned, in_pieces, ranks
from secateur.runtime.kernels.numbers import Floats, in_halves, whole
from secateur.runtime.kernels.panels import Panel

__all__ = ["Masked"]

CHUNK = 128
"""Outputs of a chunk."""

PART = 256
"""Inputs of a part."""

LINE = 2 * STRIP
"""Weights of a line: two inputs of sixteen outputs."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Masked(Layout):
    """Float32 that are not zero, in halves: chunk of outputs by chunk, within it part by part, within it by strips.

    A chunk is 128 outputs, a part 256 inputs, a strip sixteen outputs; two inputs of a strip are a line.

    Attributes:
        starts: For each strip, how many weights lie before it, and at the end how many there are.
        columns: For each line, 32 bits: which of its weights are not zero, output by output.
        values: For each line, the large halves of its weights, then the small ones.

    Example:
        >>> masked = Masked.of(np.eye(2, dtype=np.float32))
        >>> bin(masked.columns[0]), masked.dense()
        ('0b1001', array([[1., 0.],
               [0., 1.]], dtype=float32))
    """

    @classmethod
    def of(cls, weight_OI: Floats) -> Masked:
        """The weights that are not zero.

        Raises:
            LayerError: One has no halves; see `in_halves`.
        """
        outputs, inputs = weight_OI.shape
        tiles = in_pieces(weight_OI, CHUNK, PART).reshape(-1, CHUNK // STRIP, STRIP, PART // 2, 2)
        lines = tiles.transpose(0, 1, 3, 2, 4).reshape(-1, LINE)
        kept = lines != 0
        halves, rest = in_halves(lines[kept])
        counts = kept.sum(axis=1)
        starts = np.zeros(len(lines) * LINE // (STRIP * PART) + 1, np.int64)
        np.cumsum(counts.reshape(-1, PART // 2).sum(axis=1), out=starts[1:])
        slots = first_halves(counts)
        values = np.empty(halves.size, np.uint16)
        values[slots], values[slots + np.repeat(counts, counts)] = halves[:, 0], halves[:, 1]
        return cls(
            shape=(outputs, inputs),
            starts=starts,
            columns=aligned(np.packbits(kept, axis=1, bitorder="little").view(np.uint32).reshape(-1)),
            values=aligned(values),
            rest=rest,
        )

    def steps(self, element: str, rows: int) -> list[Step]:
        """See `Layout.steps`.

        Raises:
            ConfigError: Activations are not float32.
        """
        if element != "float":
            raise ConfigError("a weight in halves is multiplied with activations of float32, found bfloat16.")
        return masked_steps((CHUNK, PART), rows)

    def over(self, panel: Panel) -> Kernel:
        """See `Layout.over`: of images there is none."""
        raise ConfigError(f"a weight in halves is multiplied with rows, found {panel}.")

    @property
    def most_vectors(self) -> int:
        """See `Layout.most_vectors`."""
        return 4

    def dense(self) -> Floats:
        """See `Layout.dense`."""
        outputs, inputs = self.shape
        kept = np.unpackbits(self.columns.view(np.uint8), bitorder="little").reshape(-1, LINE).astype(np.bool_)
        counts = kept.sum(axis=1)
        slots = first_halves(counts)
        halves = np.stack([self.values[slots], self.values[slots + np.repeat(counts, counts)]], axis=-1)
        lines = np.zeros(kept.shape, np.float32)
        lines[kept] = whole(halves, self.rest)
        tiles = lines.reshape(-(-outputs // CHUNK), -1, CHUNK // STRIP, PART // 2, STRIP, 2)
        padded = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(len(tiles) * CHUNK, -1)
        return np.ascontiguousarray(padded[:outputs, :inputs])


def first_halves(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where the large half of each weight is, for lines of so many; its small one is as many further.

    Example:
        >>> first_halves(np.array([2, 1]))
        array([0, 1, 4])
    """
    starts = np.cumsum(counts, dtype=np.int64) - counts
    slots: npt.NDArray[np.int64] = ranks(counts) + 2 * np.repeat(starts, counts)
    return slots
