"""Reduce the scores of a unit's weights to one score, bit-identically in every framework.

The result of a floating-point sum depends on its order, which differs between libraries. Sums here add adjacent
values pairwise, in an order that depends only on the shape, so that equal scores give equal unit scores everywhere.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

from secateur._array import Array, namespace, pairwise_sum
from secateur._registry import Registry

__all__ = ["REDUCTIONS", "ReductionSteps", "find_steps", "pairwise_sum"]

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


class ReductionSteps(NamedTuple):
    """A reduction in steps, so that processes that hold parts of a unit can share the second one.

    Attributes:
        prepare: Transforms each score.
        combine: Reduces two to one.
        finish: Transforms the reduced score of a unit, given the number of its weights.
    """

    prepare: Callable[[Array], Array]
    combine: Callable[[Array, Array], Array]
    finish: Callable[[Array, int], Array]


def find_steps(reduction: Reduction) -> ReductionSteps | None:
    """Return the steps of a reduction; ``None``: it cannot be shared by processes.

    Examples:
        >>> find_steps(REDUCTIONS.find("mean")).finish(6.0, 4)
        1.5
    """
    return _STEPS.get(reduction)


def _return_prepared(values: Array) -> Array:
    return values


def _return_total(total: Array, size: int) -> Array:  # noqa: ARG001
    return total


_STEPS = {
    pairwise_sum: ReductionSteps(_return_prepared, operator.add, _return_total),
    _sum: ReductionSteps(_return_prepared, operator.add, _return_total),
    _mean: ReductionSteps(
        _return_prepared, operator.add, lambda total, size: total if size == 1 else total * (1.0 / size)
    ),
    _max: ReductionSteps(_return_prepared, lambda left, right: namespace(left).maximum(left, right), _return_total),
    _l2: ReductionSteps(lambda values: values * values, operator.add, _return_total),
}
