"""Rules for indexing with tensors of indices."""

from __future__ import annotations

import numpy as np

from secateur.graph.alignment import Operand, align
from secateur.graph.labels import find_axes
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

LOOKUP = "looks them up by number"


@register_rule("aten.index", "aten._unsafe_index")
def follow_index(tracer: Tracer, call: Call) -> None:
    """Pass on the axes that are not indexed. Indexed axes must keep their size."""
    value, indices = call["self"], call["indices"]
    indexed = [axis for axis, index in enumerate(indices) if index is not None]
    rank = len(value.shape)
    added = len(call.output.shape) - (rank - len(indexed))
    is_adjacent = indexed == list(range(indexed[0], indexed[0] + len(indexed)))
    place = indexed[0] if is_adjacent else 0
    labels = []
    for array in tracer.get_labels(value):
        fixed = tracer.fix_axes(array, indexed, LOOKUP)
        others = [size for axis, size in enumerate(fixed.shape) if axis not in indexed]
        labels.append(fixed.reshape(others[:place] + [1] * added + others[place:]))
    for index in indices:
        for array in tracer.get_labels(index) if isinstance(index, Value) else ():
            tracer.pin(array, "uses them as indices")
    tracer.set_labels(call.output, labels)
    call.output.is_static = value.is_static  # a part of a weight is a weight, such as that of a chosen expert


@register_rule("aten.index_select")
def follow_index_select(tracer: Tracer, call: Call) -> None:
    """Pass on the other axes."""
    axis = call["dim"] % len(call["self"].shape)
    tracer.set_labels(
        call.output, [tracer.fix_axes(array, [axis], LOOKUP) for array in tracer.get_labels(call["self"])]
    )


@register_rule("aten.gather", "aten.take_along_dim")
def follow_gather(tracer: Tracer, call: Call) -> None:
    """Pin every axis along which the index has several places."""
    for value in call.inputs:
        for array in tracer.get_labels(value):
            tracer.fix_axes(array, find_axes(array), LOOKUP)


@register_rule("aten.one_hot", "aten.bucketize", "aten.searchsorted", "aten.histc", "aten.bincount")
def follow_counts(tracer: Tracer, call: Call) -> None:
    """Pin everything: values become positions."""
    for value in call.inputs:
        for array in tracer.get_labels(value):
            tracer.fix_axes(array, np.arange(array.ndim).tolist(), "uses their values as positions")


@register_rule("aten.index_add", "aten.index_copy")
def follow_index_add(tracer: Tracer, call: Call) -> None:
    """Unite the labels of both tensors along all axes but the indexed one."""
    axis, rank = call["dim"] % len(call.output.shape), len(call.output.shape)
    operands = []
    for value in (call["self"], call["source"]):
        operand = Operand.from_value(tracer, value, range(rank), rank)
        operand.labels = [tracer.fix_axes(array, [axis], LOOKUP) for array in operand.labels]
        operand.shape = (*operand.shape[:axis], 1, *operand.shape[axis + 1 :])
        operands.append(operand)
    tracer.set_labels(call.output, align(tracer, operands))


@register_rule("aten.index_put")
def follow_index_put(tracer: Tracer, call: Call) -> None:
    """Unite the labels of both tensors along the axes after the indexed ones."""
    value, rank = call["self"], len(call.output.shape)
    indexed = [axis for axis, index in enumerate(call["indices"]) if index is not None]
    if indexed != list(range(len(indexed))):
        tracer.stop("writes to places along inner axes")
        return
    left = rank - len(indexed)
    written = call["values"]
    own, target = Operand.from_value(tracer, value, range(rank), rank), [1] * len(indexed)
    own.labels = [tracer.fix_axes(array, indexed, LOOKUP) for array in own.labels]
    own.shape = (*target, *own.shape[len(indexed) :])
    places = len(written.shape) - left
    other = Operand((*target, *([1] * max(0, -places)), *written.shape[max(places, 0) :]), [])
    for array in tracer.get_labels(written):
        fixed = tracer.fix_axes(array, range(max(places, 0)), LOOKUP)
        other.labels.append(fixed.reshape((*target, *([1] * max(0, -places)), *fixed.shape[max(places, 0) :])))
    tracer.set_labels(call.output, align(tracer, [own, other]))
