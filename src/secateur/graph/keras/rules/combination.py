"""Rules for layers and operations that join tensors or cut them along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.graph.alignment import Operand, align
from secateur.graph.keras.layer_rules import register_layer_rule
from secateur.graph.labels import FIXED, Labels
from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import equalize_pieces, join
from secateur.graph.tracer import Tracer

__all__: list[str] = []


@register_layer_rule("Concatenate")
def follow_concatenate(tracer: Tracer, call: Call) -> None:
    """Join the labels along one axis, and unite them along the others."""
    axis = call["operation"].axis % len(call.output.shape)
    tracer.set_labels(call.output, join(tracer, call["inputs"], axis))


@register_rule("keras.ops.concatenate")
def follow_concatenate_operation(tracer: Tracer, call: Call) -> None:
    """As the layer."""
    axis = call["operation"].axis % len(call.output.shape)
    tracer.set_labels(call.output, join(tracer, call["xs"], axis))


@register_rule("keras.ops.stack")
def follow_stack(tracer: Tracer, call: Call) -> None:
    """Unite the labels of all tensors along the axes that they have."""
    rank, axis = len(call.output.shape), call["operation"].axis % len(call.output.shape)
    others = [place for place in range(rank) if place != axis]
    operands = [Operand.from_value(tracer, value, others, rank) for value in call["x"]]
    tracer.set_labels(call.output, align(tracer, operands))


@register_rule("keras.ops.split", "keras.ops.array_split")
def follow_split(tracer: Tracer, call: Call) -> None:
    """Cut labels into pieces. If only their number is given, pieces must remain equal."""
    axis = call["operation"].axis % len(call["x"].shape)
    is_number = isinstance(call["operation"].indices_or_sections, int)
    start = 0
    first: dict[int, Labels] = {}
    for output in call.outputs:
        assert output is not None
        length, labels = output.shape[axis], []
        for number, array in enumerate(tracer.get_labels(call["x"])):
            if array.shape[axis] == 1:
                labels.append(array)
                continue
            piece = np.take(array, range(start, start + length), axis=axis)
            if is_number:
                piece = equalize_pieces(tracer, piece, first.setdefault(number, piece), axis)
            else:
                tracer.note_number(call, piece, axis)
            labels.append(piece)
        tracer.set_labels(output, labels)
        start += length


@register_rule("keras.ops.unstack")
def follow_unstack(tracer: Tracer, call: Call) -> None:
    """Keep the labels of each index of an axis, which must keep its size."""
    axis, inputs = call["operation"].axis % len(call["x"].shape), tracer.get_labels(call["x"])
    for index, output in enumerate(call.outputs):
        assert output is not None
        tracer.set_labels(output, [_select(tracer, array, axis, index) for array in inputs])


def _select(tracer: Tracer, labels: Labels, axis: int, index: int) -> Labels:
    """Return the labels of one index, and remove its axis, which must keep its size."""
    tracer.fix_axes(labels, [axis], "selects one of them")
    chosen: Labels = np.take(labels, index if labels.shape[axis] > 1 else 0, axis=axis)
    return chosen


def _cut(tracer: Tracer, call: Call, labels: Labels, axis: int, part: range, size: int) -> Labels:
    """Return the labels of a range of indices."""
    if labels.shape[axis] == 1 or part == range(size):
        return labels
    if part.step != 1 or not part:
        return tracer.fix_axes(labels, [axis], f"takes every {part.step}th of them")
    piece = np.take(labels, part, axis=axis)
    tracer.consume(labels)
    if part.start:
        tracer.note_number(call, np.take(labels, range(part.start), axis=axis), axis)
    if part.stop < size:
        tracer.note_number(call, piece, axis)
    return piece


@register_rule("keras.ops.slice")
def follow_slice(tracer: Tracer, call: Call) -> None:
    """Keep the labels of a range of indices along each axis."""
    value, starts = call["inputs"], call["start_indices"]
    if not isinstance(starts, list | tuple) or not all(isinstance(start, int) for start in starts):
        tracer.stop("has start indices that are tensors")
        return
    labels = list(tracer.get_labels(value))
    for axis, (start, length, size) in enumerate(zip(starts, call.output.shape, value.shape, strict=True)):
        labels = [_cut(tracer, call, array, axis, range(start, start + length), size) for array in labels]
    tracer.set_labels(call.output, labels)


@register_rule("keras.ops.get_item")
def follow_get_item(tracer: Tracer, call: Call) -> None:
    """Follow basic indexing: numbers, ranges, new axes and an ellipsis."""
    value = call["x"]
    keys = _expand_keys(call["key"], len(value.shape))
    if keys is None:
        tracer.stop("is indexed with a tensor")
        return
    tracer.set_labels(
        call.output, [_index(tracer, call, array, value.shape, keys) for array in tracer.get_labels(value)]
    )


def _expand_keys(key: Any, rank: int) -> list[Any] | None:
    """Return one key per axis, and ``None`` for each new axis; ``None`` if a key is not basic."""
    keys = list(key) if isinstance(key, list | tuple) else [key]
    if any(not isinstance(item, int | slice | type(None) | type(...)) or isinstance(item, bool) for item in keys):
        return None
    left = rank - sum(item is not None and item is not ... for item in keys)
    if ... not in keys:
        keys.append(...)
    place = keys.index(...)
    return [*keys[:place], *[slice(None)] * left, *keys[place + 1 :]]


def _index(tracer: Tracer, call: Call, labels: Labels, shape: Sequence[int], keys: Sequence[Any]) -> Labels:
    axis, sizes = 0, iter(shape)
    for key in keys:
        if key is None:
            labels = np.expand_dims(labels, axis)
            axis += 1
            continue
        size = next(sizes)
        if isinstance(key, int):
            labels = _select(tracer, labels, axis, key % size)
            continue
        labels = _cut(tracer, call, labels, axis, range(size)[key], size)
        axis += 1
    return labels


@register_rule("keras.ops.flip")
def follow_flip(tracer: Tracer, call: Call) -> None:
    """Reverse labels."""
    axis = call["operation"].axis
    tracer.set_labels(call.output, [np.flip(array, axis) for array in tracer.get_labels(call["x"])])


@register_rule("keras.ops.roll")
def follow_roll(tracer: Tracer, call: Call) -> None:
    """Pass other axes on. The shifted axes must keep their size, because the shift is a number of indices."""
    rank, axis = len(call["x"].shape), call["operation"].axis
    axes = range(rank) if axis is None else [item % rank for item in ([axis] if isinstance(axis, int) else axis)]
    tracer.set_labels(
        call.output, [tracer.fix_axes(array, axes, "shifts them") for array in tracer.get_labels(call["x"])]
    )


@register_rule("keras.ops.pad")
def follow_pad(tracer: Tracer, call: Call) -> None:
    """Add indices without labels, before and after those of an axis."""
    widths, is_constant = call["operation"].pad_width, call["operation"].mode == "constant"
    widths = [*widths] * len(call["x"].shape) if len(widths) == 1 else widths
    labels = []
    for array in tracer.get_labels(call["x"]):
        for axis, width in enumerate(widths):
            if tuple(width) == (0, 0) or array.shape[axis] == 1:
                continue
            if not is_constant:
                array = tracer.fix_axes(array, [axis], "repeats some of them")
                continue
            pads = [(0, 0)] * array.ndim
            pads[axis] = tuple(width)
            array = np.pad(array, pads, constant_values=FIXED)
        labels.append(array)
    tracer.set_labels(call.output, labels)
