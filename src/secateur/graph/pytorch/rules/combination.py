"""Rules for operations that join tensors or cut them along an axis."""

from __future__ import annotations

import numpy as np

from secateur.graph.alignment import Operand, align
from secateur.graph.labels import FIXED, Labels, find_axes
from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import equalize_pieces, join
from secateur.graph.tracer import Tracer

__all__: list[str] = []


@register_rule("aten.cat", "aten.concat", "aten.concatenate")
def follow_cat(tracer: Tracer, call: Call) -> None:
    """Join the labels along one axis, and unite them along the others."""
    axis = call.get("dim", 0) % len(call.output.shape)
    values = [value for value in call["tensors"] if value.shape != (0,) and value.shape[axis]]
    tracer.set_labels(call.output, join(tracer, values, axis))


@register_rule("aten.stack")
def follow_stack(tracer: Tracer, call: Call) -> None:
    """Unite the labels of all tensors along the axes that they have."""
    rank, axis = len(call.output.shape), call.get("dim", 0) % len(call.output.shape)
    others = [place for place in range(rank) if place != axis]
    operands = [Operand.from_value(tracer, value, others, rank) for value in call["tensors"]]
    tracer.set_labels(call.output, align(tracer, operands))


@register_rule(
    "aten.split", "aten.split_with_sizes", "aten.split_copy", "aten.split_with_sizes_copy", "aten.unsafe_split"
)
def follow_split(tracer: Tracer, call: Call) -> None:
    """Cut labels into pieces. With one size for all pieces, these must remain equal."""
    sizes = call.get("split_size", call.get("split_sizes"))
    _cut(tracer, call, are_equal=isinstance(sizes, int), has_numbers=True)


@register_rule("aten.chunk", "aten.tensor_split", "aten.unsafe_chunk")
def follow_chunk(tracer: Tracer, call: Call) -> None:
    """Cut labels into equal pieces, which must remain equal."""
    _cut(tracer, call, are_equal=True, has_numbers=False)


def _cut(tracer: Tracer, call: Call, *, are_equal: bool, has_numbers: bool) -> None:
    value = call["self"]
    axis = call.get("dim", 0) % len(value.shape)
    start = 0
    first: dict[int, Labels] = {}
    for output in call.outputs:
        assert output is not None
        length = output.shape[axis]
        labels = []
        for number, array in enumerate(tracer.get_labels(value)):
            if array.shape[axis] == 1:
                labels.append(array)
                continue
            piece = np.take(array, range(start, start + length), axis=axis)
            if are_equal:
                piece = equalize_pieces(tracer, piece, first.setdefault(number, piece), axis)
            labels.append(piece)
            if has_numbers:
                tracer.note_number(call, piece, axis)
        tracer.set_labels(output, labels)
        start += length


@register_rule("aten.glu")
def follow_gated_unit(tracer: Tracer, call: Call) -> None:
    """Unite both halves of an axis, which are multiplied."""
    value = call["self"]
    axis = call.get("dim", -1) % len(value.shape)
    half = value.shape[axis] // 2
    labels = []
    for array in tracer.get_labels(value):
        if array.shape[axis] > 1:
            first, second = np.split(array, [half], axis=axis)
            tracer.unite(first, second)
            labels.append(first)
        else:
            labels.append(array)
    tracer.set_labels(call.output, labels)


@register_rule("aten.slice", "aten.narrow", "aten.slice_copy")
def follow_slice(tracer: Tracer, call: Call) -> None:
    """Keep the labels of a range of indices."""
    value = call["self"]
    axis = call.get("dim", 0) % len(value.shape)
    length = call.output.shape[axis]
    start = call.get("start") or 0
    start = max(start + value.shape[axis], 0) if start < 0 else min(start, value.shape[axis])
    step = call.get("step", 1)
    labels = []
    for array in tracer.get_labels(value):
        if array.shape[axis] == 1 or length == value.shape[axis]:
            labels.append(array)
            continue
        if step != 1:
            array = tracer.fix_axes(array, [axis], f"takes every {step}th of them")
            labels.append(array)
            continue
        piece = np.take(array, range(start, start + length), axis=axis)
        labels.append(piece)
        tracer.consume(array)
        if start:
            tracer.note_number(call, np.take(array, range(start), axis=axis), axis)
        if start + length < value.shape[axis]:
            tracer.note_number(call, piece, axis)
    tracer.set_labels(call.output, labels)


@register_rule("aten.select", "aten.select_copy")
def follow_select(tracer: Tracer, call: Call) -> None:
    """Keep the labels of one index of an axis, which must keep its size."""
    axis, index = call["dim"] % len(call["self"].shape), call["index"]
    labels = []
    for array in tracer.get_labels(call["self"]):
        chosen = np.take(array, [index if array.shape[axis] > 1 else 0], axis=axis)
        _fix_selected(tracer, array, axis, "selects one of them")
        labels.append(chosen.squeeze(axis))
    tracer.set_labels(call.output, labels)


@register_rule("aten.unbind", "aten.unbind_copy")
def follow_unbind(tracer: Tracer, call: Call) -> None:
    """Keep the labels of each index of an axis, which must keep its size."""
    axis = call.get("dim", 0) % len(call["self"].shape)
    inputs = tracer.get_labels(call["self"])
    for array in inputs:
        _fix_selected(tracer, array, axis, "selects each of them")
    for index, output in enumerate(call.outputs):
        assert output is not None
        chosen = [np.take(array, [index if array.shape[axis] > 1 else 0], axis=axis).squeeze(axis) for array in inputs]
        tracer.set_labels(output, chosen)


def _fix_selected(tracer: Tracer, labels: Labels, axis: int, reason: str) -> None:
    """Record that an axis must keep its size; rows along other axes can still be reordered."""
    if tracer.keeps_sizes and find_axes(labels)[-1:] not in ((), (axis,)):
        tracer.consume(labels)
    else:
        tracer.fix_axes(labels, [axis], reason)


@register_rule("aten.flip")
def follow_flip(tracer: Tracer, call: Call) -> None:
    """Reverse labels."""
    tracer.set_labels(call.output, [np.flip(array, call["dims"]) for array in tracer.get_labels(call["self"])])


@register_rule("aten.roll")
def follow_roll(tracer: Tracer, call: Call) -> None:
    """Pass other axes on. The shifted axes must keep their size, because the shift is a number of indices."""
    axes = [axis % len(call.output.shape) for axis in call.get("dims") or range(len(call.output.shape))]
    reason = "shifts them"
    tracer.set_labels(call.output, [tracer.fix_axes(array, axes, reason) for array in tracer.get_labels(call["self"])])


@register_rule("aten.constant_pad_nd", "aten.pad")
def follow_pad(tracer: Tracer, call: Call) -> None:
    """Add indices without labels, before and after those of an axis."""
    pad, rank = list(call["pad"]), len(call.output.shape)
    is_constant = call.get("mode", "constant") == "constant"
    labels = []
    for array in tracer.get_labels(call["self"]):
        for place in range(len(pad) // 2):
            axis, width = rank - 1 - place, (pad[2 * place], pad[2 * place + 1])
            if width == (0, 0) or array.shape[axis] == 1:
                continue
            if not is_constant or min(width) < 0:
                array = tracer.fix_axes(array, [axis], "repeats some of them")
                continue
            widths = [(0, 0)] * rank
            widths[axis] = width
            array = np.pad(array, widths, constant_values=FIXED)
        labels.append(array)
    tracer.set_labels(call.output, labels)
