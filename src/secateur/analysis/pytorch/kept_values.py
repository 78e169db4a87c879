"""Restore the values of weights that are pruned for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from secateur.masking.pytorch import ParameterWeight

__all__ = ["keep_values"]


@contextmanager
def keep_values(weight: ParameterWeight) -> Iterator[None]:
    """Restore a weight, bit for bit, at the end of this context."""
    before = weight.stored.clone()
    try:
        yield
    finally:
        with torch.no_grad():
            weight.stored.copy_(before)
