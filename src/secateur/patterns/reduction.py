"""Reduce the scores of a unit's weights to one score, with the same bits in every framework.

The result of a floating-point sum depends on its order, which differs between libraries. Sums here add adjacent
values pairwise, in an order that depends only on the shape, so that equal scores give equal unit scores everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from secateur._array import Array, namespace, pairwise_sum
from secateur._registry import Registry

__all__ = ["REDUCTIONS", "pairwise_sum"]

Reduction = Callable[[Array, tuple[int, ...]], Array]
"""Reduces scores along axes, which keep length 1."""

REDUCTIONS: Registry[Reduction] = Registry("reduction")


@REDUCTIONS.register("sum")
def _sum(values: Array, axes: tuple[int, ...]) -> Array:
    return pairwise_sum(values, axes)


@REDUCTIONS.register("mean")
def _mean(values: Array, axes: tuple[int, ...]) -> Array:
    size = math.prod(values.shape[axis] for axis in axes)
    total = pairwise_sum(values, axes)
    # CUDA divides by a scalar by multiplying with its reciprocal, and the CPU does not.
    return total if size == 1 else total * (1.0 / size)


@REDUCTIONS.register("max")
def _max(values: Array, axes: tuple[int, ...]) -> Array:
    if all(values.shape[axis] == 1 for axis in axes):
        return values
    return namespace(values).max(values, axis=axes, keepdims=True)


@REDUCTIONS.register("l2")
def _l2(values: Array, axes: tuple[int, ...]) -> Array:
    # The squared norm gives the same ranking, and libraries round square roots differently.
    return pairwise_sum(values * values, axes)
