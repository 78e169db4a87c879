"""Labels: which indices of parameters the indices of a tensor depend on.

A label is the number of one index along one axis of one parameter, such as "row 7 of the weight of conv1". An array of
labels has the rank of its tensor, and size 1 along the axes on which the labels do not depend. ``FIXED`` marks indices
that no parameter determines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["FIXED", "Labels", "broadcast_axes", "find_axes", "reshape_labels", "squeeze_constant_axes"]

Labels = npt.NDArray[np.int64]

FIXED = -1


def find_axes(labels: Labels) -> tuple[int, ...]:
    """Return the axes on which the labels depend.

    Examples:
        >>> find_axes(np.zeros((1, 3, 1, 2), dtype=np.int64))
        (1, 3)
    """
    return tuple(axis for axis, size in enumerate(labels.shape) if size > 1)


def squeeze_constant_axes(labels: Labels) -> Labels:
    """Reduce axes along which the labels are constant to size 1.

    Examples:
        >>> squeeze_constant_axes(np.array([[4, 5], [4, 5]]))
        array([[4, 5]])
    """
    for axis in find_axes(labels):
        first = np.take(labels, [0], axis=axis)
        if (labels == first).all():
            labels = first
    return labels


def broadcast_axes(labels: Labels, axes: Sequence[int], shape: Sequence[int]) -> Labels:
    """Repeat labels along some axes, to the sizes that these have in `shape`."""
    target = [shape[axis] if axis in axes else size for axis, size in enumerate(labels.shape)]
    return np.broadcast_to(labels, target)


def reshape_labels(labels: Labels, before: Sequence[int], after: Sequence[int]) -> Labels:
    """Follow the labels of a tensor through a reshape.

    Args:
        labels: The labels.
        before: Shape of the tensor.
        after: Its new shape.

    Returns:
        Labels of the new rank. They can depend on several axes if one axis was split.

    Examples:
        Four channels become two heads with two channels each:

        >>> reshape_labels(np.array([[6, 7, 8, 9]]), (5, 4), (5, 2, 2))
        array([[[6, 7],
                [8, 9]]])
    """
    merged: list[int] = []
    split: list[int] = []
    parts = list(_match_axes(before, after))
    for old, new in parts:
        depends = any(labels.shape[axis] > 1 for axis in old)
        labels = broadcast_axes(labels, old, before) if depends else labels
        merged.append(math.prod(before[axis] for axis in old) if depends else 1)
        split += [after[axis] if depends else 1 for axis in new]
    return squeeze_constant_axes(labels.reshape(merged).reshape(split))


def _match_axes(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Divide the axes of two shapes with equal products into the shortest runs with equal products."""
    start, end = 0, 0
    while start < len(before) or end < len(after):
        old, new = _take(before, start), _take(after, end)
        while (left := math.prod(before[axis] for axis in old)) != (right := math.prod(after[axis] for axis in new)):
            if left < right:
                old.append(start + len(old))
            else:
                new.append(end + len(new))
        start, end = start + len(old), end + len(new)
        yield old, new


def _take(shape: Sequence[int], start: int) -> list[int]:
    return [start] if start < len(shape) else []
