"""The interface to one pruned weight and its mask, in any framework."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from secateur._array import Array, count_true

__all__ = ["PrunedWeight"]


class PrunedWeight(ABC):
    """One pruned weight and its mask, in any framework.

    If processes share a weight, each stores a *shard* of it, and ranks the units of a *part*. Otherwise both are the
    whole weight.

    Attributes:
        mask: Booleans in the shape of the shard, ``True`` = kept; ``None``: nothing is pruned yet.
    """

    mask: Any

    @property
    @abstractmethod
    def stored(self) -> Array:
        """The shard."""

    @abstractmethod
    def canonical(self) -> Array:
        """The part as an (O, K, I) array of at least float32."""

    @abstractmethod
    def apply_mask(self) -> None:
        """Set pruned weights to zero."""

    def compute_digest(self) -> str:
        """Return the SHA-256 of the bytes of the shard, in hexadecimal."""
        return hashlib.sha256(np.ascontiguousarray(self.stored).data).hexdigest()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole weight."""
        return tuple(self.stored.shape)

    def read_part(self) -> Array:
        """Return the part, in the stored shape."""
        return self.stored

    def read_mask(self) -> Any:
        """Return the mask of the part, in the stored shape; ``None``: nothing is pruned yet."""
        return self.mask

    def write_mask(self, mask: Any) -> None:
        """Set the mask from that of the part, in the stored shape."""
        self.mask = mask

    def count_kept(self) -> int:
        """Count the weights that the mask keeps, in the whole weight."""
        return count_true(self.mask)
