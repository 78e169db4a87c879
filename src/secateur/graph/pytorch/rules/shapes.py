"""Rules for operations that rearrange the axes of a tensor and keep its elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.graph.labels import Labels, find_axes, reshape_labels
from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []


@register_rule("aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.view_as")
def follow_reshape(tracer: Tracer, call: Call) -> None:
    """Follow labels through a reshape, and record the sizes in the call."""
    _reshape(tracer, call, call.get("size") or call.get("shape") or ())


@register_rule("aten.flatten", "aten.squeeze", "aten.unsqueeze", "aten.squeeze_copy", "aten.unsqueeze_copy")
def follow_implied_reshape(tracer: Tracer, call: Call) -> None:
    """Follow labels through a reshape whose sizes follow from those of the input."""
    _reshape(tracer, call, ())


@register_rule("aten.unflatten")
def follow_unflatten(tracer: Tracer, call: Call) -> None:
    """Follow labels through the split of one axis."""
    axis = call["dim"] % len(call["self"].shape)
    _reshape(tracer, call, [-1] * axis + list(call["sizes"]))


def _reshape(tracer: Tracer, call: Call, sizes: Sequence[Any]) -> None:
    before, after = call["self"].shape, call.output.shape
    if 0 in before:
        tracer.stop("reshapes an empty tensor")
        return
    labels = [reshape_labels(array, before, after) for array in tracer.get_labels(call["self"])]
    tracer.set_labels(call.output, labels)
    for array in labels:
        for axis in find_axes(array):
            if axis < len(sizes) and sizes[axis] != -1:
                tracer.note_number(call, array, axis)


@register_rule("aten.permute", "aten.permute_copy")
def follow_permute(tracer: Tracer, call: Call) -> None:
    """Reorder the axes of labels."""
    rank = len(call["self"].shape)
    order = [axis % rank for axis in call["dims"]]
    tracer.set_labels(call.output, [array.transpose(order) for array in tracer.get_labels(call["self"])])


@register_rule("aten.transpose", "aten.t", "aten.numpy_T", "aten.mT", "aten.adjoint", "aten.swapaxes")
def follow_transpose(tracer: Tracer, call: Call) -> None:
    """Swap two axes of labels."""
    rank = len(call["self"].shape)
    if rank < 2:
        tracer.set_labels(call.output, tracer.get_labels(call["self"]))
        return
    first = call.get("dim0", call.get("axis0", rank - 2)) % rank
    second = call.get("dim1", call.get("axis1", rank - 1)) % rank
    labels = [array.swapaxes(first, second) for array in tracer.get_labels(call["self"])]
    tracer.set_labels(call.output, labels)


@register_rule("aten.movedim", "aten.moveaxis")
def follow_movedim(tracer: Tracer, call: Call) -> None:
    """Move axes of labels."""
    labels = [np.moveaxis(array, call["source"], call["destination"]) for array in tracer.get_labels(call["self"])]
    tracer.set_labels(call.output, labels)


@register_rule("aten.expand", "aten.expand_copy", "aten.broadcast_to")
def follow_expand(tracer: Tracer, call: Call) -> None:
    """Follow labels through broadcasting: new indices have the same labels."""
    sizes, rank = call.get("size") or (), len(call.output.shape)
    labels = [_pad_rank(array, rank) for array in tracer.get_labels(call["self"])]
    tracer.set_labels(call.output, labels)
    for array in labels:
        for axis in find_axes(array):
            if axis < len(sizes) and sizes[axis] != -1:
                tracer.note_number(call, array, axis)


@register_rule("aten.repeat", "aten.tile")
def follow_repeat(tracer: Tracer, call: Call) -> None:
    """Repeat labels along axes on which they depend."""
    rank = len(call.output.shape)
    repeats = list(call.get("repeats") or call.get("dims"))
    repeats = [1] * (rank - len(repeats)) + repeats
    labels = []
    for array in tracer.get_labels(call["self"]):
        padded = _pad_rank(array, rank)
        labels.append(np.tile(padded, [repeats[axis] if padded.shape[axis] > 1 else 1 for axis in range(rank)]))
    tracer.set_labels(call.output, labels)


@register_rule("aten.repeat_interleave")
def follow_repeat_interleave(tracer: Tracer, call: Call) -> None:
    """Repeat each index of one axis."""
    repeats, axis = call.get("repeats"), call.get("dim")
    if not isinstance(repeats, int) or axis is None:
        tracer.stop("repeats indices by numbers that depend on data, or flattens its input")
        return
    axis %= len(call.output.shape)
    labels = [
        np.repeat(array, repeats, axis=axis) if array.shape[axis] > 1 else array
        for array in tracer.get_labels(call["self"])
    ]
    tracer.set_labels(call.output, labels)


@register_rule("aten.pixel_shuffle")
def follow_pixel_shuffle(tracer: Tracer, call: Call) -> None:
    """Move the inner part of the channels to the positions of an image: each output channel is a unit."""
    value, factor = call["self"], call["upscale_factor"]
    *batch, channels, height, width = value.shape
    split = (*batch, channels // factor**2, factor**2, height, width)
    axis = len(batch)
    tracer.set_labels(call.output, _split_and_fix(tracer, call, split, axis, axis + 1))


@register_rule("aten.pixel_unshuffle")
def follow_pixel_unshuffle(tracer: Tracer, call: Call) -> None:
    """Move positions of an image to the inner part of the channels."""
    axis, factor = len(call["self"].shape) - 3, call["downscale_factor"]
    labels = []
    for array in tracer.get_labels(call["self"]):
        fixed = tracer.fix_axes(array, (axis + 1, axis + 2), "moves positions")
        labels.append(np.repeat(fixed, factor**2, axis=axis) if fixed.shape[axis] > 1 else fixed)
    tracer.set_labels(call.output, labels)


@register_rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def follow_channel_shuffle(tracer: Tracer, call: Call) -> None:
    """Interleave the groups. Their number must not change, so the channels at one position of all groups are a unit."""
    value, groups = call["self"], call["groups"]
    batch, channels, *positions = value.shape
    split, swapped = (batch, groups, channels // groups, *positions), (batch, channels // groups, groups, *positions)
    labels = []
    for array in tracer.get_labels(value):
        divided = reshape_labels(array, value.shape, split)
        tracer.fix_axes(divided, [1], "keeps the number of groups")
        labels.append(reshape_labels(divided.swapaxes(1, 2), swapped, value.shape))
    tracer.set_labels(call.output, labels)


def _split_and_fix(tracer: Tracer, call: Call, split: Sequence[int], axis: int, inner: int) -> list[Labels]:
    """Split the channels in two, and prune the inner ones together."""
    labels = []
    for array in tracer.get_labels(call["self"]):
        divided = reshape_labels(array, call["self"].shape, split)
        if divided.shape[inner] > 1 and divided.shape[axis] > 1:
            divided = tracer.fix_axes(divided, [inner], "are moved to positions")
        fixed = tracer.fix_axes(divided, range(inner, len(split)), "moves them")
        labels.append(fixed.squeeze(inner))
    return labels


def _pad_rank(labels: Labels, rank: int) -> Labels:
    return labels.reshape([1] * (rank - labels.ndim) + list(labels.shape))
