"""Rules for indexing with tensors of indices."""

from __future__ import annotations

from secateur.graph.labels import find_axes
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

LOOKUP = "looks them up by number"


@register_rule("keras.ops.take")
def follow_take(tracer: Tracer, call: Call) -> None:
    """Pass on the axes that are not indexed. The indexed one must keep its size."""
    value, indices, axis = call["x"], call["indices"], call["operation"].axis
    if axis is None or isinstance(indices, list | tuple):
        tracer.stop("flattens its input, or takes a list of indices")
        return
    axis %= len(value.shape)
    added = len(indices.shape) if isinstance(indices, Value) else 0
    labels = []
    for array in tracer.get_labels(value):
        fixed = tracer.fix_axes(array, [axis], LOOKUP)
        labels.append(fixed.reshape([*fixed.shape[:axis], *[1] * added, *fixed.shape[axis + 1 :]]))
    for array in tracer.get_labels(indices) if isinstance(indices, Value) else ():
        tracer.pin(array, "uses them as indices")
    tracer.set_labels(call.output, labels)


@register_rule("keras.ops.take_along_axis")
def follow_take_along_axis(tracer: Tracer, call: Call) -> None:
    """Pin every axis along which the index has several places."""
    for value in call.inputs:
        for array in tracer.get_labels(value):
            tracer.fix_axes(array, find_axes(array), LOOKUP)


@register_rule("keras.ops.one_hot", "keras.ops.multi_hot", "keras.ops.bincount", "keras.ops.search_sorted")
def follow_counts(tracer: Tracer, call: Call) -> None:
    """Pin everything: values become positions."""
    for value in call.inputs:
        for array in tracer.get_labels(value):
            tracer.fix_axes(array, find_axes(array), "uses their values as positions")
