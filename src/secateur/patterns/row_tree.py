"""Reduce rows that are divided over processes, bit-identically to one process.

Rows are reduced in adjacent pairs, as by `pairwise_sum`, which form a tree: node ``(level, index)`` reduces the rows
from ``index · 2^level`` up to the next node. A process that holds consecutive rows reduces them to the few nodes that
need no other rows. The nodes of all processes are then reduced to one, in the order of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from secateur._array import Array, namespace

__all__ = ["Node", "combine_axes", "list_nodes", "merge_nodes", "reduce_rows"]

Node = tuple[int, int]
"""Level and index of a node; rows have level 0."""

Combine = Callable[[Array, Array], Array]
"""Reduces two values to one."""


def list_nodes(rows: range, count: int) -> list[Node]:
    """Return the fewest nodes that consist of consecutive rows, of `count` rows in total.

    Examples:
        >>> list_nodes(range(3, 8), 10)
        [(0, 3), (2, 1)]
        >>> list_nodes(range(10), 10)
        [(4, 0)]
    """
    edges = enumerate(_split_edges(rows, count))
    return [(level, index) for level, edge in edges for index in edge if index is not None]


def reduce_rows(values: Array, rows: range, count: int, combine: Combine) -> dict[Node, Array]:
    """Reduce consecutive rows to the nodes that `list_nodes` returns, in its order.

    Args:
        values: Array with `rows` as its first axis.
        rows: Indices of the rows.
        count: Number of rows over all processes.
        combine: How two rows are reduced.

    Returns:
        Node → array without the first axis.
    """
    nodes = {}
    for level, (first, last) in enumerate(_split_edges(rows, count)):
        if first is not None:
            nodes[level, first], values = values[0], values[1:]
        if last is not None:
            nodes[level, last], values = values[-1], values[:-1]
        values = _combine_pairs(values, 0, combine)
    return nodes


def combine_axes(values: Array, axes: tuple[int, ...], combine: Combine) -> Array:
    """Combine all values along `axes`, which keep length 1, in adjacent pairs.

    Examples:
        >>> import numpy as np
        >>> combine_axes(np.array([[1, 5, 3]]), (1,), np.maximum)
        array([[5]])
    """
    for axis in axes:
        while values.shape[axis] > 1:
            values = _combine_pairs(values, axis, combine)
    return values


def merge_nodes(nodes: Mapping[Node, Array], count: int, combine: Combine) -> Array:
    """Reduce nodes that consist of all of `count` rows to one value.

    Examples:
        >>> merge_nodes({(1, 0): 1.0, (0, 2): 2.0, (0, 3): 3.0, (0, 4): 4.0}, 5, max)
        4.0
    """
    level = 0
    known: dict[int, Array] = {}
    while True:
        known |= {index: value for (at, index), value in nodes.items() if at == level}
        if count == 1:
            return known[0]
        known = {
            index // 2: combine(value, known[index + 1]) if index + 1 in known else value
            for index, value in known.items()
            if index % 2 == 0
        }
        level, count = level + 1, -(-count // 2)


def _split_edges(rows: range, count: int) -> Iterator[tuple[int | None, int | None]]:
    """Yield, for each level, the first and the last node that have no partner among the rows; ``None``: it has one."""
    first, last = rows.start, rows.stop
    while first < last:
        if count == 1:
            yield 0, None
            return
        head = first if first % 2 else None
        first += first % 2
        tail = last - 1 if last % 2 and first < last < count else None
        last -= tail is not None
        yield head, tail
        first, last, count = first // 2, -(-last // 2), -(-count // 2)


def _combine_pairs(values: Array, axis: int, combine: Combine) -> Array:
    """Combine adjacent pairs along an axis; the last one of an odd number is kept."""
    lead, length = (slice(None),) * axis, values.shape[axis]
    even = length - length % 2
    combined = combine(values[(*lead, slice(0, even, 2))], values[(*lead, slice(1, even, 2))])
    if even == length:
        return combined
    return namespace(values).concat([combined, values[(*lead, slice(even, None))]], axis=axis)
