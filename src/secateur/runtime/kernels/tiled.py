"""How weights lie in memory for a processor that multiplies tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels.choice import Step, tile_steps
from secateur.runtime.kernels.chunks import STRIP
from secateur.runtime.kernels.kernel import Kernel
from secateur.runtime.kernels.layouts import MOST_IN_SHORT, Layout, aligned, ranks
from secateur.runtime.kernels.numbers import Floats, decoded
from secateur.runtime.kernels.panels import Panel
from secateur.runtime.kernels.tiles import TILE_INPUTS

__all__ = ["Tiled"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Tiled(Layout):
    """Sixteen outputs by sixteen, of which all have the same inputs: those that any of them keeps.

    Attributes:
        starts: For each sixteen outputs, how many tiles lie before them, and at the end how many there are.
        columns: For each tile, its 32 inputs; what fills up the last tile of sixteen outputs repeats its last input.
        values: tiles × 16 outputs × 32 inputs, zeros included.

    Example:
        >>> tiled = Tiled.of(np.eye(2, 5, k=3, dtype=np.float32))
        >>> tiled.columns[0, :4], tiled.values[0, :2, :2]
        (array([3, 4, 4, 4], dtype=uint16), array([[1., 0.],
               [0., 1.]], dtype=float32))
    """

    @classmethod
    def of(cls, weight_OI: Floats) -> Tiled:
        """The weights of inputs that any of sixteen outputs keeps."""
        outputs, inputs = weight_OI.shape
        padded = np.zeros((-(-outputs // STRIP), STRIP, inputs), np.float32)
        padded.reshape(-1, inputs)[:outputs] = weight_OI
        group, column = np.nonzero((padded != 0).any(axis=1))
        counts = np.bincount(group, minlength=len(padded))
        starts = np.zeros(len(padded) + 1, np.int64)
        np.cumsum(-(-counts // TILE_INPUTS), out=starts[1:])
        last = np.zeros(len(padded), np.int64)
        last[group] = column  # Columns ascend, so the last one stays.
        columns = np.repeat(last, np.diff(starts) * TILE_INPUTS)
        values = np.zeros((len(columns), STRIP), np.float32)
        slots = starts[group] * TILE_INPUTS + ranks(counts)
        columns[slots] = column
        values[slots] = padded[group, :, column]
        index = np.uint16 if inputs <= MOST_IN_SHORT else np.uint32
        return cls(
            shape=(outputs, inputs),
            starts=starts,
            columns=aligned(columns.reshape(-1, TILE_INPUTS).astype(index)),
            values=aligned(values.reshape(-1, TILE_INPUTS, STRIP).transpose(0, 2, 1)),
        )

    def steps(self, element: str, rows: int) -> list[Step]:
        """See `Layout.steps`.

        Raises:
            ConfigError: Activations are not bfloat16.
            LayerError: This processor has no tiles.
        """
        from secateur.runtime.kernels.target import has_tiles

        if element != "bfloat":
            raise ConfigError("a weight in tiles is multiplied with activations of bfloat16, found float32.")
        if not has_tiles():
            raise LayerError(
                "the weight was packed for a processor with AMX, and this is none. Compile the model here."
            )
        return tile_steps(f"i{8 * self.columns.itemsize}", rows)

    def over(self, panel: Panel) -> Kernel:
        """See `Layout.over`: of images there is none."""
        raise ConfigError(f"a weight in tiles is multiplied with rows, found {panel}.")

    @property
    def most_vectors(self) -> int:
        """See `Layout.most_vectors`."""
        return 4

    def dense(self) -> Floats:
        """See `Layout.dense`."""
        outputs, inputs = self.shape
        dense = np.zeros((len(self.starts) - 1, inputs, STRIP), np.float32)
        group = np.repeat(np.arange(len(dense)), np.diff(self.starts))
        # What fills up is zero, and belongs where a weight is.
        np.add.at(dense, (group[:, None], self.columns), decoded(self.values).transpose(0, 2, 1))
        return dense.transpose(0, 2, 1).reshape(-1, inputs)[:outputs]
