"""The interface to other processes that hold units of the same layer."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from secateur._array import Array

__all__ = ["Peers", "RowPeers"]


class Peers(Protocol):
    """The processes that hold the units of a layer: each holds at least one, and those of lower rank the lower indices.

    All of them must call the methods in the same order.

    Attributes:
        count: Number of units over all processes.
    """

    count: int

    def add(self, counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
        """Return the sum of the arrays of all processes."""

    def count_before(self, count: int) -> int:
        """Return the sum of the counts of the processes with lower indices."""


class RowPeers(Protocol):
    """The processes that hold consecutive output channels of a weight, at least one each.

    All of them must call the methods in the same order.

    Attributes:
        rank: Number of this process.
        starts: The first output channel of each process, and the total number.
    """

    rank: int
    starts: list[int]

    def exchange(self, arrays: Array) -> Array:
        """Send ``arrays[rank]`` to each process, and return what each of them sent to this one, in the same shape."""

    def gather(self, array: Array) -> list[Array]:
        """Return the arrays of all processes, which have the same shape."""
