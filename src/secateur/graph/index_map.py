"""Index maps: which indices along an axis belong to which unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.errors import ConfigError

__all__ = ["AffineMap", "ExplicitMap", "IndexMap"]

Indices = npt.NDArray[np.int64]


class IndexMap(ABC):
    """Map units to indices along one axis. Every unit has the same number of indices.

    Attributes:
        units: Number of units, at least 1.
        width: Indices per unit, at least 1.
    """

    units: int
    width: int

    @abstractmethod
    def indices(self) -> Indices:
        """Return the indices as an array of shape (units, width)."""

    def check(self, length: int) -> None:
        """Check that the map fits an axis.

        Args:
            length: Length of the axis.

        Raises:
            ConfigError: An index is out of range, or belongs to more than one unit.
        """
        indices = self.indices()
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= length:
            raise ConfigError(f"index {low if low < 0 else high} is out of range for an axis of length {length}")
        flat = indices.reshape(-1)
        order = np.argsort(flat, kind="stable")
        repeated = np.flatnonzero(flat[order][1:] == flat[order][:-1])
        if repeated.size:
            first, second = (order[repeated[0] : repeated[0] + 2] // indices.shape[1]).tolist()
            index = int(flat[order[repeated[0]]])
            if first == second:
                raise ConfigError(f"unit {first} owns index {index} twice")
            raise ConfigError(f"units {first} and {second} overlap: both own index {index}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineMap(IndexMap):
    """Unit u owns the indices ``offset + u * stride + range(width)``.

    Attributes:
        units: Number of units.
        width: Indices per unit.
        stride: Distance from the first index of a unit to that of the next; ``None``: `width`, so that units are
            adjacent.
        offset: First index of unit 0.

    Raises:
        ConfigError: A number is out of range.

    Examples:
        Three channels of 2x2 positions each, flattened for a linear layer:

        >>> AffineMap(units=3, width=4).indices()
        array([[ 0,  1,  2,  3],
               [ 4,  5,  6,  7],
               [ 8,  9, 10, 11]])
    """

    units: int
    width: int = 1
    stride: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        for name in ("units", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")

    def indices(self) -> Indices:
        """See `IndexMap.indices`."""
        stride = self.width if self.stride is None else self.stride
        starts = self.offset + stride * np.arange(self.units, dtype=np.int64)
        return starts[:, None] + np.arange(self.width, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ExplicitMap(IndexMap):
    """List the indices of each unit, for layouts that an `AffineMap` cannot describe.

    Attributes:
        rows: The indices of each unit; all of the same length.

    Raises:
        ConfigError: There are no units, units without indices, or units with different numbers of indices.

    Examples:
        Two channels of three positions each, flattened with channels last:

        >>> ExplicitMap(((0, 2, 4), (1, 3, 5))).indices()
        array([[0, 2, 4],
               [1, 3, 5]])
    """

    rows: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        rows = tuple(tuple(int(index) for index in row) for row in self.rows)
        if not rows or not rows[0]:
            raise ConfigError("an index map needs at least one unit with at least one index")
        if len({len(row) for row in rows}) > 1:
            raise ConfigError(f"all units need the same number of indices, found {sorted({len(row) for row in rows})}")
        object.__setattr__(self, "rows", rows)

    @property
    def units(self) -> int:  # type: ignore[override]
        """See `IndexMap`."""
        return len(self.rows)

    @property
    def width(self) -> int:  # type: ignore[override]
        """See `IndexMap`."""
        return len(self.rows[0])

    def indices(self) -> Indices:
        """See `IndexMap.indices`."""
        return np.array(self.rows, dtype=np.int64)
