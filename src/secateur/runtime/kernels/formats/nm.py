"""Store weights with an N:M pattern."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.patterns.nm import fill_nm_groups
from secateur.runtime.kernels.formats.base import STRIP, WeightFormat, copy_aligned
from secateur.runtime.kernels.formats.dtypes import Floats, decode

__all__ = ["GROUP_LENGTHS", "NMFormat", "get_position_bits"]

GROUP_LENGTHS = (2, 4, 8, 16)
"""Values of M that kernels support."""


def get_position_bits(group: int) -> int:
    """Return the number of bits that store the position of a weight in a group of 2, 4, 8 or 16.

    Examples:
        >>> get_position_bits(4), get_position_bits(8)
        (2, 4)
    """
    return 2 if group <= 4 else 4


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NMFormat(WeightFormat):
    """N weights of each group of M inputs, strip by strip. Each of the sixteen outputs of a strip has a vector lane.

    Attributes:
        keep: N.
        group: M.
        starts: For each strip, the number of vectors of sixteen weights before it, and the total at the end.
        columns: For each vector of weights, their positions in their groups, packed into one integer with the first
            weight in the lowest bits. See `get_position_bits`.

    Examples:
        >>> packed = NMFormat.from_dense(np.array([[0, 7, 9, 0]], np.float32), 2, 4)
        >>> packed.columns & 3, packed.to_dense()
        (array([1, 2], dtype=uint32), array([[0., 7., 9., 0.]], dtype=float32))
    """

    keep: int
    group: int

    @classmethod
    def can_pack(cls, weight_OI: Floats, keep: int, group: int) -> bool:
        """Whether kernels support M, and no group has more than N nonzero weights."""
        if group not in GROUP_LENGTHS or weight_OI.shape[1] % group:
            return False
        groups = weight_OI.reshape(-1, group)
        return int(np.count_nonzero(groups, axis=1).max()) <= keep

    @classmethod
    def from_dense(cls, weight_OI: Floats, keep: int, group: int) -> NMFormat:
        """Pack the nonzero weights of each group, and its first zeros if fewer than N weights are nonzero."""
        outputs, inputs = weight_OI.shape
        strips, groups = -(-outputs // STRIP), inputs // group
        padded = np.zeros((strips * STRIP, groups, group), np.float32)
        padded.reshape(-1, inputs)[:outputs] = weight_OI
        is_stored = fill_nm_groups(padded != 0, keep, axis=2)
        positions, values = np.flatnonzero(is_stored) % group, padded[is_stored]
        lanes = positions.reshape(strips, STRIP, groups * keep).transpose(0, 2, 1).astype(np.uint64)
        bits = get_position_bits(group)
        shifts = np.arange(STRIP, dtype=np.uint64) * np.uint64(bits)
        words = np.bitwise_or.reduce(lanes << shifts, axis=2).astype(np.uint32 if bits == 2 else np.uint64)
        starts = np.arange(strips + 1, dtype=np.int64) * (groups * keep)
        interleaved = values.reshape(strips, STRIP, groups * keep).transpose(0, 2, 1)
        return cls(
            shape=(outputs, inputs),
            keep=keep,
            group=group,
            starts=starts,
            columns=copy_aligned(words.reshape(-1)),
            values=copy_aligned(interleaved),
        )

    def to_dense(self) -> Floats:
        """See `WeightFormat.to_dense`."""
        outputs, inputs = self.shape
        strips, groups = len(self.starts) - 1, inputs // self.group
        bits = get_position_bits(self.group)
        shifts = np.arange(STRIP, dtype=np.uint64) * np.uint64(bits)
        lanes = self.columns.astype(np.uint64)[:, None] >> shifts & np.uint64(self.group - 1)
        positions = lanes.reshape(strips, -1, STRIP).transpose(0, 2, 1).reshape(strips * STRIP, groups, self.keep)
        values = decode(self.values).reshape(strips, -1, STRIP).transpose(0, 2, 1).reshape(positions.shape)
        dense = np.zeros((strips * STRIP, groups, self.group), np.float32)
        np.put_along_axis(dense, positions.astype(np.int64), values, 2)
        return dense.reshape(-1, inputs)[:outputs]
