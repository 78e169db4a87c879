"""How weights lie in memory of which N of every M stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.patterns.nm import fill_nm_groups
from secateur.runtime.kernels.formats.base import STRIP, Layout, aligned
from secateur.runtime.kernels.formats.dtypes import Floats, decoded

__all__ = ["GROUPS", "Grouped", "place_bits"]

GROUPS = (2, 4, 8, 16)
"""Lengths of groups that there are kernels for."""


def place_bits(group: int) -> int:
    """Bits of a weight's place in a group of 2, 4, 8 or 16.

    Example:
        >>> place_bits(4), place_bits(8)
        (2, 4)
    """
    return 2 if group <= 4 else 4


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Grouped(Layout):
    """N weights of each group of M, strip by strip of sixteen outputs, each of which is one lane.

    Attributes:
        keep: N.
        group: M.
        starts: For each strip, how many sixteens of weights lie before it, and at the end how many there are.
        columns: For each sixteen, the places of its weights within their groups, two bits each (four where M > 4), the
            lowest first.

    Example:
        >>> grouped = Grouped.of(np.array([[0, 7, 9, 0]], np.float32), 2, 4)
        >>> grouped.columns & 3, grouped.to_dense()
        (array([1, 2], dtype=uint32), array([[0., 7., 9., 0.]], dtype=float32))
    """

    keep: int
    group: int

    @classmethod
    def fits(cls, weight_OI: Floats, keep: int, group: int) -> bool:
        """Whether there is a kernel, and no group has more weights than N."""
        if group not in GROUPS or weight_OI.shape[1] % group:
            return False
        groups = weight_OI.reshape(-1, group)
        return int(np.count_nonzero(groups, axis=1).max()) <= keep

    @classmethod
    def of(cls, weight_OI: Floats, keep: int, group: int) -> Grouped:
        """The weights of each group that are not zero, and its first zeros where those are fewer than N."""
        outputs, inputs = weight_OI.shape
        strips, groups = -(-outputs // STRIP), inputs // group
        padded = np.zeros((strips * STRIP, groups, group), np.float32)
        padded.reshape(-1, inputs)[:outputs] = weight_OI
        kept = fill_nm_groups(padded != 0, keep, axis=2)
        places, values = np.flatnonzero(kept) % group, padded[kept]
        lanes = places.reshape(strips, STRIP, groups * keep).transpose(0, 2, 1).astype(np.uint64)
        bits = place_bits(group)
        shifts = np.arange(STRIP, dtype=np.uint64) * np.uint64(bits)
        words = np.bitwise_or.reduce(lanes << shifts, axis=2).astype(np.uint32 if bits == 2 else np.uint64)
        starts = np.arange(strips + 1, dtype=np.int64) * (groups * keep)
        turned = values.reshape(strips, STRIP, groups * keep).transpose(0, 2, 1)
        return cls(
            shape=(outputs, inputs),
            keep=keep,
            group=group,
            starts=starts,
            columns=aligned(words.reshape(-1)),
            values=aligned(turned),
        )

    def to_dense(self) -> Floats:
        """See `Layout.to_dense`."""
        outputs, inputs = self.shape
        strips, groups = len(self.starts) - 1, inputs // self.group
        bits = place_bits(self.group)
        shifts = np.arange(STRIP, dtype=np.uint64) * np.uint64(bits)
        lanes = self.columns.astype(np.uint64)[:, None] >> shifts & np.uint64(self.group - 1)
        places = lanes.reshape(strips, -1, STRIP).transpose(0, 2, 1).reshape(strips * STRIP, groups, self.keep)
        values = decoded(self.values).reshape(strips, -1, STRIP).transpose(0, 2, 1).reshape(places.shape)
        dense = np.zeros((strips * STRIP, groups, self.group), np.float32)
        np.put_along_axis(dense, places.astype(np.int64), values, 2)
        return dense.reshape(-1, inputs)[:outputs]
