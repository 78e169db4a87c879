"""Random weights with zeros in a pattern."""

from __future__ import annotations

import numpy as np

__all__ = ["pruned"]


def pruned(shape: tuple[int, int], pattern: str, sparsity: float, rng: np.random.Generator) -> np.ndarray:
    """A weight of shape (O, I), float32, pruned at random.

    Args:
        shape: (O, I).
        pattern: Such as ``"4x1"``, or ``"2:4"``.
        sparsity: Share of blocks that are zero, in [0, 1]; of N:M the pattern decides.
        rng: Where numbers come from.
    """
    weight = rng.standard_normal(shape, np.float32)
    if ":" in pattern:
        keep, group = (int(number) for number in pattern.split(":"))
        order = rng.random((shape[0], shape[1] // group, group)).argsort(axis=2).argsort(axis=2)
        return weight * (order < keep).reshape(shape)
    rows, cols = (int(number) for number in pattern.split("x"))
    mask = rng.random((shape[0] // rows, shape[1] // cols)) >= sparsity
    return weight * mask.repeat(rows, 0).repeat(cols, 1)
