"""How weights lie in memory of which N of every M stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.choice import Step, grouped_steps
from secateur.runtime.kernels.layouts import Floats, aligned
from secateur.runtime.kernels.selecting import place_bits
from secateur.runtime.kernels.strips import STRIP

__all__ = ["GROUPS", "Grouped"]

GROUPS = (2, 4, 8, 16)
"""Lengths of groups that there are kernels for."""


@dataclass(frozen=True, slots=True, eq=False)
class Grouped:
    """N weights of each group of M, strip by strip of sixteen outputs, each of which is one lane.

    Attributes:
        shape: (O, I) of the weight.
        keep: N.
        group: M.
        starts: For each strip, how many sixteens of weights lie before it, and at the end how many there are.
        columns: For each sixteen, the places of its weights within their groups, two bits each (four where M > 4), the
            lowest first.
        values: The weights.

    Example:
        >>> grouped = Grouped.of(np.array([[0, 7, 9, 0]], np.float32), 2, 4)
        >>> grouped.columns & 3, grouped.dense()
        (array([1, 2], dtype=uint32), array([[0., 7., 9., 0.]], dtype=float32))
    """

    shape: tuple[int, int]
    keep: int
    group: int
    starts: npt.NDArray[np.int64]
    columns: npt.NDArray[Any]
    values: npt.NDArray[Any]

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
        places = np.sort(np.argsort(padded == 0, axis=2, kind="stable")[:, :, :keep], axis=2)
        values = np.take_along_axis(padded, places, 2)
        lanes = places.reshape(strips, STRIP, groups * keep).transpose(0, 2, 1).astype(np.uint64)
        bits = place_bits(group)
        shifts = np.arange(STRIP, dtype=np.uint64) * np.uint64(bits)
        words = np.bitwise_or.reduce(lanes << shifts, axis=2).astype(np.uint32 if bits == 2 else np.uint64)
        starts = np.arange(strips + 1, dtype=np.int64) * (groups * keep)
        turned = values.reshape(strips, STRIP, groups * keep).transpose(0, 2, 1)
        return cls((outputs, inputs), keep, group, starts, aligned(words.reshape(-1)), aligned(turned))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes

    def addresses(self) -> tuple[int, ...]:
        """Where the arrays are that a kernel reads first."""
        return self.starts.ctypes.data, self.columns.ctypes.data, self.values.ctypes.data, 0, 0

    def steps(self, element: str, rows: int) -> list[Step]:
        """The kernels for a batch; `element`: LLVM's type of activations."""
        return grouped_steps((self.keep, self.group), (element, "float"), rows)

    def dense(self) -> Floats:
        """The weight with its zeros."""
        outputs, inputs = self.shape
        strips, groups = len(self.starts) - 1, inputs // self.group
        bits = place_bits(self.group)
        shifts = np.arange(STRIP, dtype=np.uint64) * np.uint64(bits)
        lanes = self.columns.astype(np.uint64)[:, None] >> shifts & np.uint64(self.group - 1)
        places = lanes.reshape(strips, -1, STRIP).transpose(0, 2, 1).reshape(strips * STRIP, groups, self.keep)
        values = self.values.reshape(strips, -1, STRIP).transpose(0, 2, 1).reshape(places.shape)
        dense = np.zeros((strips * STRIP, groups, self.group), np.float32)
        np.put_along_axis(dense, places.astype(np.int64), values, 2)
        return dense.reshape(-1, inputs)[:outputs]
