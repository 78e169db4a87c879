"""Make random weights with zeros in a pattern."""

from __future__ import annotations

import numpy as np

__all__ = ["make_pruned_weight"]


def make_pruned_weight(shape: tuple[int, int], pattern: str, sparsity: float, rng: np.random.Generator) -> np.ndarray:
    """Make a random float32 weight of shape (O, I), and set random blocks or groups of weights to zero.

    Args:
        shape: Shape (O, I) of the weight.
        pattern: A pattern such as ``"4x1"`` or ``"2:4"``.
        sparsity: Share of blocks that are zero, in [0, 1]. It is ignored for N:M, where the pattern defines it.
        rng: The random number generator.
    """
    weight = rng.standard_normal(shape, np.float32)
    if ":" in pattern:
        keep, group = (int(number) for number in pattern.split(":"))
        order = rng.random((shape[0], shape[1] // group, group)).argsort(axis=2).argsort(axis=2)
        return weight * (order < keep).reshape(shape)
    rows, cols = (int(number) for number in pattern.split("x"))
    mask = rng.random((shape[0] // rows, shape[1] // cols)) >= sparsity
    return weight * mask.repeat(rows, 0).repeat(cols, 1)
