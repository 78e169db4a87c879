"""Parts of rules that describe the same operation of several frameworks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from secateur.graph.alignment import Operand, align, contract
from secateur.graph.labels import FIXED, Labels, find_axes
from secateur.graph.program import Value
from secateur.graph.tracer import Tracer

__all__ = ["equalize_pieces", "find_vector", "fix_scanned_axis", "join", "multiply_matrices", "parse_einsum"]

JOINED = "is joined with a tensor that depends on other axes"


def multiply_matrices(tracer: Tracer, first: Value, second: Value) -> list[Labels]:
    """Return the labels of a product of matrices, with broadcast batch axes."""
    left, right = len(first.shape), len(second.shape)
    batch = max(left, right, 2) - 2
    rows, inner, columns = batch, batch + 1, batch + 2
    terms = (
        [inner] if left == 1 else [*range(batch - (left - 2), batch), rows, inner],
        [inner] if right == 1 else [*range(batch - (right - 2), batch), inner, columns],
    )
    output = [*range(batch), *([rows] if left > 1 else []), *([columns] if right > 1 else [])]
    return contract(tracer, [(first, terms[0]), (second, terms[1])], output)


def parse_einsum(equation: str, ranks: Sequence[int]) -> tuple[list[list[int]], list[int]] | None:
    """Return the numbers of the axes of each operand and of the output.

    Args:
        equation: The equation; it can have ellipses.
        ranks: Rank of each operand.

    Returns:
        ``None`` if a letter occurs twice in one term, as for diagonals.

    Examples:
        >>> parse_einsum("...x,xy->...y", [3, 2])
        ([[0, 1, 2], [2, 3]], [0, 1, 3])
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    dots = max(
        (rank - len(term.replace("...", "")) for rank, term in zip(ranks, terms, strict=True) if "..." in term),
        default=0,
    )
    letters = sorted(set(inputs) - set(",."))
    if not arrow:
        once = "".join(letter for letter in letters if inputs.count(letter) == 1)
        output = f"...{once}" if "..." in inputs else once

    def number(term: str, rank: int) -> list[int]:
        before, ellipsis, after = term.partition("...")
        own = rank - len(before) - len(after) if ellipsis else 0
        middle = range(dots - own, dots)
        return [*(dots + letters.index(c) for c in before), *middle, *(dots + letters.index(c) for c in after)]

    numbered = [number(term, rank) for term, rank in zip(terms, ranks, strict=True)]
    result = number(output, len(output.replace("...", "")) + (dots if "..." in output else 0))
    return None if any(len(set(term)) < len(term) for term in numbered) else (numbered, result)


def find_vector(tracer: Tracer, labels: Iterable[Labels], axis: int, size: int, reason: str) -> Labels:
    """Return the labels along one axis as a vector; `FIXED` if there are none."""
    for array in labels:
        if array.shape[axis] > 1:
            inner = [other for other in find_axes(array) if other != axis % array.ndim]
            return tracer.fix_axes(array, inner, reason).reshape(-1)
    return np.full(size, FIXED, dtype=np.int64)


def fix_scanned_axis(
    tracer: Tracer, labels: Iterable[Labels], axes: Sequence[int], reason: str = "combines them"
) -> list[Labels]:
    """Follow an operation in which every element depends on all others along some axes, such as a softmax.

    Labels that depend on these axes alone are kept and inexact.
    """
    kept = []
    for array in labels:
        own = find_axes(array)
        if own and set(own) <= set(axes):
            tracer.mark_inexact(array, reason)
            kept.append(array)
        else:
            kept.append(tracer.fix_axes(array, axes, reason))
    return kept


def equalize_pieces(tracer: Tracer, piece: Labels, first: Labels, axis: int) -> Labels:
    """Unite the labels of a piece of an axis with those of the first piece, so that both lose the same number."""
    if tracer.keeps_sizes:
        return piece
    if piece.shape == first.shape:
        tracer.unite(piece, first)
        return piece
    reason = "cuts them into pieces of different lengths"
    tracer.fix_axes(first, [axis], reason)
    return tracer.fix_axes(piece, [axis], reason)


def join(tracer: Tracer, values: Sequence[Value], axis: int) -> list[Labels]:
    """Join the labels of tensors along one axis, and unite them along the others."""
    rank = len(values[0].shape)
    operands = [Operand.from_value(tracer, value, range(rank), rank) for value in values]
    joined = _join_along(tracer, operands, axis)
    for operand in operands:
        operand.labels = [array for array in operand.labels if array.shape[axis] == 1]
        operand.shape = (*operand.shape[:axis], 1, *operand.shape[axis + 1 :])
    labels = align(tracer, operands)
    if joined is None:
        return labels
    taken = set(find_axes(joined)) - {axis}
    return [*(tracer.fix_axes(array, sorted(taken), JOINED) for array in labels), joined]


def _join_along(tracer: Tracer, operands: Sequence[Operand], axis: int) -> Labels | None:
    """Join the labels that depend on the axis itself; ``None`` if there are none.

    Labels that also depend on other axes, such as on heads, remain heads unless those of all operands do.
    """
    parts = _find_parts(operands, axis)
    if len({None if part is None else find_axes(part) for part in parts}) > 1:
        for operand in operands:
            operand.labels = [
                tracer.fix_axes(labels, [axis], JOINED) if len(find_axes(labels)) > 1 else labels
                for labels in operand.labels
            ]
        parts = _find_parts(operands, axis)
    if all(part is None for part in parts):
        return None
    blocks = []
    target = np.max([part.shape for part in parts if part is not None], axis=0)
    for operand, part in zip(operands, parts, strict=True):
        shape = [*target]
        shape[axis] = operand.shape[axis]
        blocks.append(np.full(shape, FIXED) if part is None else np.broadcast_to(part, shape))
    return np.concatenate(blocks, axis=axis)


def _find_parts(operands: Sequence[Operand], axis: int) -> list[Labels | None]:
    numbers = [operand.find(axis) for operand in operands]
    return [
        None if number is None else operand.labels[number] for operand, number in zip(operands, numbers, strict=True)
    ]
