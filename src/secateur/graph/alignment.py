"""Align the labels of tensors that are combined element by element, or by a product with a sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.graph.group import Role
from secateur.graph.labels import Labels, find_axes
from secateur.graph.program import Value
from secateur.graph.tracer import CONSTANT, Tracer

__all__ = ["Operand", "align", "align_values", "align_vectors", "contract", "drop_axes"]


@dataclass(slots=True)
class Operand:
    """A tensor in a common space of axes.

    Attributes:
        shape: Its shape in that space; 1 along axes that it does not have or is broadcast along.
        labels: Its labels, with the rank of the space.
        is_static: Whether it is computed from parameters and constants alone.
    """

    shape: tuple[int, ...]
    labels: list[Labels]
    is_static: bool = False

    @classmethod
    def from_value(cls, tracer: Tracer, value: Value, axes: Sequence[int], rank: int) -> Operand:
        """Place a tensor in a space of `rank` axes; `axes` are the places of its own axes."""
        order = np.argsort(axes)
        target = [1] * rank
        for own, axis in enumerate(axes):
            target[axis] = value.shape[own]

        def place(labels: Labels) -> Labels:
            shape = [1] * rank
            for own, axis in enumerate(axes):
                shape[axis] = labels.shape[own]
            return labels.transpose(order).reshape(shape)

        return cls(tuple(target), [place(labels) for labels in tracer.get_labels(value)], value.is_static)

    def find(self, axis: int) -> int | None:
        """Return the number of the labels that depend on an axis."""
        return next((number for number, labels in enumerate(self.labels) if labels.shape[axis] > 1), None)


def align(tracer: Tracer, operands: Sequence[Operand]) -> list[Labels]:
    """Unite the labels of operands that are combined element by element.

    Where labels of one operand depend on several axes, such as on heads and on the channels of each, and those of
    another on one of these only, the outermost axis remains: units are whole heads. If nothing is removed, see
    `Tracer.keeps_sizes`, the channels of each head can still be reordered, but not the heads.

    Args:
        tracer: The tracer.
        operands: The operands. Their labels are reduced where necessary.

    Returns:
        The labels of the result.
    """
    for number, first in enumerate(operands):
        for second in operands[number + 1 :]:
            _align_pair(tracer, first, second)
            _align_pair(tracer, second, first)
    combined: list[Labels] = []
    taken: set[int] = set()
    for labels in sorted(
        (labels for operand in operands for labels in operand.labels), key=lambda labels: -len(find_axes(labels))
    ):
        axes = set(find_axes(labels))
        if axes and not axes & taken:
            combined.append(labels)
            taken |= axes
    return combined


def _align_pair(tracer: Tracer, first: Operand, second: Operand) -> None:
    """Align the labels of the first operand with the axes that the second one has."""
    for number in range(len(first.labels)):
        labels = first.labels[number]
        axes = find_axes(labels)
        shared = [axis for axis in axes if second.shape[axis] > 1]
        if not shared:
            continue
        match = next((other for other in second.labels if find_axes(other) == axes), None)
        if match is not None:
            tracer.unite(labels, match)
            continue
        if tracer.keeps_sizes and _has_free_rows(labels, shared, second):
            continue
        outer = axes[0]
        labels = tracer.fix_axes(labels, axes[1:], CONSTANT)
        first.labels[number] = labels
        for axis in shared:
            position = second.find(axis)
            if axis != outer:
                if position is not None:
                    second.labels[position] = tracer.fix_axes(second.labels[position], [axis], CONSTANT)
            elif position is None:
                first.labels[number] = tracer.fix_axes(labels, [outer], CONSTANT)
            elif find_axes(second.labels[position])[0] == outer:
                other = second.labels[position]
                second.labels[position] = tracer.fix_axes(other, find_axes(other)[1:], CONSTANT)
                tracer.unite(labels, second.labels[position])
            else:
                first.labels[number] = tracer.fix_axes(labels, [outer], CONSTANT)
                second.labels[position] = tracer.fix_axes(second.labels[position], [outer], CONSTANT)


def _has_free_rows(labels: Labels, shared: Sequence[int], second: Operand) -> bool:
    """Whether one operand has rows of labels, such as the channels of a head, along which the other one is constant."""
    axes = find_axes(labels)
    if len(axes) > 1 and axes[-1] not in shared:
        return True
    inner = {find_axes(other)[-1] for other in second.labels if set(find_axes(other)) & set(shared)}
    return bool(inner) and not inner & set(axes)


def align_values(tracer: Tracer, values: Sequence[Value], rank: int) -> list[Labels]:
    """Unite the labels of tensors that are combined element by element, with broadcasting."""
    operands = [
        Operand.from_value(tracer, value, range(rank - len(value.shape), rank), rank)
        for value in values
        if math.prod(value.shape) > 1
    ]
    return align(tracer, operands)


def align_vectors(tracer: Tracer, value: Value, vectors: Sequence[Value | None], axis: int) -> list[Labels]:
    """Unite the labels of a tensor along one axis with those of vectors, such as the parameters of a norm."""
    rank = len(value.shape)
    operands = [Operand.from_value(tracer, value, range(rank), rank)]
    operands += [
        Operand.from_value(tracer, vector, [axis % rank], rank)
        for vector in vectors
        if vector is not None and vector.shape != (1,)
    ]
    return align(tracer, operands)


def contract(
    tracer: Tracer,
    factors: Sequence[tuple[Value, Sequence[int]]],
    output: Sequence[int],
    *,
    weight: int | None = None,
) -> list[Labels]:
    """Follow a product of tensors that is summed over the axes that the output does not have.

    Args:
        tracer: The tracer.
        factors: Each tensor with the numbers of its axes in a common space, as the letters of an einsum.
        output: The numbers of the output's axes.
        weight: Which factor is a weight, which produces the indices that the output has and consumes the others;
            ``None``: the static ones are, or the last if all are.

    Returns:
        The labels of the output.
    """
    rank = 1 + max(axis for _, term in factors for axis in term)
    summed = [axis for axis in range(rank) if axis not in output]
    operands = [Operand.from_value(tracer, value, term, rank) for value, term in factors]
    static = [operand for operand in operands if operand.is_static]
    weights = static if weight is None and len(static) < len(operands) else [operands[-1 if weight is None else weight]]
    for operand in weights:
        _mark_roles(tracer, operand, output)
    remaining = []
    for labels in align(tracer, operands):
        axes = set(find_axes(labels))
        if not axes <= set(summed):
            remaining.append(tracer.fix_axes(labels, summed, CONSTANT))
        elif any(operand.find(axis) is not None for operand in weights for axis in axes):
            tracer.consume(labels)
        else:
            tracer.mark_inexact(labels, "sums products of activations over them")
    return [array.transpose([*output, *summed]).reshape([array.shape[axis] for axis in output]) for array in remaining]


def _mark_roles(tracer: Tracer, operand: Operand, output: Sequence[int]) -> None:
    for labels in operand.labels:
        is_output = any(axis in output for axis in find_axes(labels))
        tracer.mark_role(labels, Role.PRODUCER if is_output else Role.CONSUMER)


def drop_axes(tracer: Tracer, labels: Sequence[Labels], axes: Sequence[int]) -> list[Labels]:
    """Follow a reduction over some axes, which remain with size 1."""
    remaining = []
    for array in labels:
        if set(find_axes(array)) <= set(axes):
            tracer.mark_inexact(array, "combines them")
            continue
        remaining.append(tracer.fix_axes(array, axes, CONSTANT))
    return remaining
