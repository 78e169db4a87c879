"""Store weights for AMX as dense tiles, without the inputs that none of sixteen outputs keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from secateur.runtime.kernels.formats.base import (
    MAX_UINT16_INDICES,
    STRIP,
    AmxFormat,
    copy_aligned,
    number_within_runs,
)
from secateur.runtime.kernels.formats.dtypes import Floats, decode, merge_float32, split_float32

__all__ = ["TILE_INPUTS", "ColumnTileFormat"]

TILE_INPUTS = 32
"""Number of inputs in a tile: a cache line of bfloat16."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ColumnTileFormat(AmxFormat):
    """Dense tiles of sixteen outputs, with the inputs that any of the sixteen keeps.

    Attributes:
        starts: For each strip of sixteen outputs, the number of tiles before it, and the total at the end.
        columns: For each tile, its 32 inputs, or 16 inputs if weights are stored as two bfloat16. The last tile of a
            strip is padded with its last input.
        values: The weights, including zeros, of shape (tiles, 16 outputs, 32 inputs), or (tiles, 16 outputs, 16 inputs,
            2).

    Examples:
        >>> packed = ColumnTileFormat.from_dense(np.eye(2, 5, k=3, dtype=np.float32))
        >>> packed.columns[0, :4], packed.values[0, :2, :2]
        (array([3, 4, 4, 4], dtype=uint16), array([[1., 0.],
               [0., 1.]], dtype=float32))
    """

    @classmethod
    def from_dense(cls, weight_OI: Floats, width: int = TILE_INPUTS) -> ColumnTileFormat:
        """Pack the inputs that any output of a strip keeps into tiles of `width` inputs."""
        outputs, inputs = weight_OI.shape
        padded = np.zeros((-(-outputs // STRIP), STRIP, inputs), np.float32)
        padded.reshape(-1, inputs)[:outputs] = weight_OI
        strip, column = np.nonzero((padded != 0).any(axis=1))
        counts = np.bincount(strip, minlength=len(padded))
        starts = np.zeros(len(padded) + 1, np.int64)
        np.cumsum(-(-counts // width), out=starts[1:])
        last = np.zeros(len(padded), np.int64)
        last[strip] = column  # Columns are sorted, so the largest is written last.
        columns = np.repeat(last, np.diff(starts) * width)
        values = np.zeros((len(columns), STRIP), np.float32)
        slots = starts[strip] * width + number_within_runs(counts)
        columns[slots] = column
        values[slots] = padded[strip, :, column]
        index_dtype = np.uint16 if inputs <= MAX_UINT16_INDICES else np.uint32
        return cls(
            shape=(outputs, inputs),
            starts=starts,
            columns=copy_aligned(columns.reshape(-1, width).astype(index_dtype)),
            values=copy_aligned(values.reshape(-1, width, STRIP).transpose(0, 2, 1)),
        )

    def split_values(self) -> ColumnTileFormat:
        """Return the same weights, each stored as two bfloat16.

        Raises:
            LayerError: A weight cannot be split. See `split_float32`.
        """
        halves, remainder = split_float32(self.values)
        return replace(self, values=copy_aligned(halves), remainder=remainder)

    @property
    def activation_type(self) -> str:
        """See `AmxFormat.activation_type`."""
        return "float" if self.values.ndim == 4 else "bfloat"

    @property
    def index_type(self) -> str:
        """LLVM type of `columns`."""
        return f"i{8 * self.columns.itemsize}"

    def to_dense(self) -> Floats:
        """See `WeightFormat.to_dense`."""
        outputs, inputs = self.shape
        dense = np.zeros((len(self.starts) - 1, inputs, STRIP), np.float32)
        strip = np.repeat(np.arange(len(dense)), np.diff(self.starts))
        is_split = self.activation_type == "float"
        values = merge_float32(self.values, self.remainder) if is_split else decode(self.values)
        # Padding adds zeros to the last input.
        np.add.at(dense, (strip[:, None], self.columns), values.transpose(0, 2, 1))
        return dense.transpose(0, 2, 1).reshape(-1, inputs)[:outputs]
