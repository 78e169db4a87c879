"""Rules for layers and operations that rearrange the axes of a tensor and keep its elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.graph.keras.layer_rules import register_layer_rule
from secateur.graph.labels import Labels, find_axes, reshape_labels
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []


@register_layer_rule("Flatten")
def follow_flatten(tracer: Tracer, call: Call) -> None:
    """Merge all axes but the batch, with the channels last."""
    value, labels = call["inputs"], list(tracer.get_labels(call["inputs"]))
    shape = value.shape
    if call["operation"].data_format == "channels_first" and len(shape) > 1:
        order = (0, *range(2, len(shape)), 1)
        labels, shape = [array.transpose(order) for array in labels], tuple(shape[axis] for axis in order)
    tracer.set_labels(call.output, [reshape_labels(array, shape, call.output.shape) for array in labels])


@register_layer_rule("Reshape")
def follow_reshape(tracer: Tracer, call: Call) -> None:
    """Follow labels through a reshape, and record the sizes in the layer."""
    _reshape(tracer, call, call["inputs"], (-1, *call["operation"].target_shape))


@register_rule("keras.ops.reshape")
def follow_reshape_operation(tracer: Tracer, call: Call) -> None:
    """Follow labels through a reshape, and record the sizes in the operation."""
    shape = call["operation"].newshape
    _reshape(tracer, call, call["x"], [shape] if isinstance(shape, int) else shape)


@register_rule("keras.ops.ravel", "keras.ops.squeeze", "keras.ops.expand_dims")
def follow_implied_reshape(tracer: Tracer, call: Call) -> None:
    """Follow labels through a reshape whose sizes follow from those of the input."""
    _reshape(tracer, call, call["x"], ())


def _reshape(tracer: Tracer, call: Call, value: Value, sizes: Sequence[int | None]) -> None:
    if 0 in value.shape:
        tracer.stop("reshapes an empty tensor")
        return
    labels = [reshape_labels(array, value.shape, call.output.shape) for array in tracer.get_labels(value)]
    tracer.set_labels(call.output, labels)
    for array in labels:
        for axis in find_axes(array):
            if axis < len(sizes) and sizes[axis] not in (-1, None):
                tracer.note_number(call, array, axis)


@register_layer_rule("Permute")
def follow_permute(tracer: Tracer, call: Call) -> None:
    """Reorder the axes of labels; the layer counts them from 1, after the batch."""
    _permute(tracer, call, call["inputs"], (0, *call["operation"].dims))


@register_rule("keras.ops.transpose")
def follow_transpose(tracer: Tracer, call: Call) -> None:
    """Reorder the axes of labels."""
    rank = len(call["x"].shape)
    axes = call["operation"].axes
    _permute(tracer, call, call["x"], range(rank)[::-1] if axes is None else [axis % rank for axis in axes])


@register_rule("keras.ops.swapaxes")
def follow_swapaxes(tracer: Tracer, call: Call) -> None:
    """Swap two axes of labels."""
    order = list(range(len(call["x"].shape)))
    first, second = call["operation"].axis1, call["operation"].axis2
    order[first], order[second] = order[second], order[first]
    _permute(tracer, call, call["x"], order)


@register_rule("keras.ops.moveaxis")
def follow_moveaxis(tracer: Tracer, call: Call) -> None:
    """Move axes of labels."""
    operation = call["operation"]
    labels = [np.moveaxis(array, operation.source, operation.destination) for array in tracer.get_labels(call["x"])]
    tracer.set_labels(call.output, labels)


def _permute(tracer: Tracer, call: Call, value: Value, order: Sequence[int]) -> None:
    tracer.set_labels(call.output, [array.transpose(order) for array in tracer.get_labels(value)])


@register_layer_rule("RepeatVector")
def follow_repeat_vector(tracer: Tracer, call: Call) -> None:
    """Add an axis, along which the labels do not depend."""
    tracer.set_labels(call.output, [array[:, None] for array in tracer.get_labels(call["inputs"])])


@register_rule("keras.ops.broadcast_to")
def follow_broadcast(tracer: Tracer, call: Call) -> None:
    """Follow labels through broadcasting, and record the sizes in the operation."""
    rank, sizes = len(call.output.shape), call["operation"].shape
    labels = [_pad_rank(array, rank) for array in tracer.get_labels(call["x"])]
    tracer.set_labels(call.output, labels)
    for array in labels:
        for axis in find_axes(array):
            if sizes[axis] not in (-1, None):
                tracer.note_number(call, array, axis)


@register_rule("keras.ops.tile")
def follow_tile(tracer: Tracer, call: Call) -> None:
    """Repeat labels along axes on which they depend."""
    rank, repeats = len(call.output.shape), call["operation"].repeats
    repeats = [repeats] if isinstance(repeats, int) else list(repeats)
    repeats = [1] * (rank - len(repeats)) + repeats
    labels = []
    for array in tracer.get_labels(call["x"]):
        padded = _pad_rank(array, rank)
        labels.append(np.tile(padded, [repeats[axis] if padded.shape[axis] > 1 else 1 for axis in range(rank)]))
    tracer.set_labels(call.output, labels)


@register_rule("keras.ops.repeat")
def follow_repeat(tracer: Tracer, call: Call) -> None:
    """Repeat each index of one axis."""
    repeats, axis = call["operation"].repeats, call["operation"].axis
    if not isinstance(repeats, int) or axis is None:
        tracer.stop("repeats indices by different numbers, or flattens its input")
        return
    labels = [
        np.repeat(array, repeats, axis=axis) if array.shape[axis] > 1 else array
        for array in tracer.get_labels(call["x"])
    ]
    tracer.set_labels(call.output, labels)


def _pad_rank(labels: Labels, rank: int) -> Labels:
    return labels.reshape([1] * (rank - labels.ndim) + list(labels.shape))
