"""How the scores of a unit's weights become one score: the same bits in every framework.

Floating-point sums depend on their order, and every library picks its own. Sums here fold neighbours pairwise, in an
order fixed by the shape alone, so that equal scores give equal unit scores everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from secateur._array import Array, namespace, pairwise_sum
from secateur._registry import Registry

__all__ = ["REDUCTIONS", "pairwise_sum"]

Reduction = Callable[[Array, tuple[int, ...]], Array]
"""Scores and the axes to reduce (kept with length 1) → reduced scores."""

REDUCTIONS: Registry[Reduction] = Registry("reduction")


@REDUCTIONS.register("sum")
def _sum(values: Array, axes: tuple[int, ...]) -> Array:
    return pairwise_sum(values, axes)


@REDUCTIONS.register("mean")
def _mean(values: Array, axes: tuple[int, ...]) -> Array:
    size = math.prod(values.shape[axis] for axis in axes)
    total = pairwise_sum(values, axes)
    # A product with the reciprocal, because CUDA turns a division by a scalar into one and the CPU does not.
    return total if size == 1 else total * (1.0 / size)


@REDUCTIONS.register("max")
def _max(values: Array, axes: tuple[int, ...]) -> Array:
    if all(values.shape[axis] == 1 for axis in axes):
        return values
    return namespace(values).max(values, axis=axes, keepdims=True)


@REDUCTIONS.register("l2")
def _l2(values: Array, axes: tuple[int, ...]) -> Array:
    # The square of the norm, which ranks alike: libraries round the square root differently.
    return pairwise_sum(values * values, axes)
