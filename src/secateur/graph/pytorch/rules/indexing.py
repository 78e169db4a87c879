"""Rules for indexing with tensors of indices."""

from __future__ import annotations

import numpy as np

from secateur.graph.labels import find_axes
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []


@register_rule("aten.index", "aten._unsafe_index")
def follow_index(tracer: Tracer, call: Call) -> None:
    """Pass on the axes that are not indexed. Indexed axes must keep their size."""
    value, indices = call["self"], call["indices"]
    indexed = [axis for axis, index in enumerate(indices) if index is not None]
    rank = len(value.shape)
    reason = f"{call.operation} in {call.module!r} looks them up by number"
    added = len(call.output.shape) - (rank - len(indexed))
    is_adjacent = indexed == list(range(indexed[0], indexed[0] + len(indexed)))
    place = indexed[0] if is_adjacent else 0
    labels = []
    for array in tracer.get_labels(value):
        fixed = tracer.fix_axes(array, indexed, reason)
        others = [size for axis, size in enumerate(fixed.shape) if axis not in indexed]
        labels.append(fixed.reshape(others[:place] + [1] * added + others[place:]))
    for index in indices:
        for array in tracer.get_labels(index) if isinstance(index, Value) else ():
            tracer.pin(array, f"{call.operation} in {call.module!r} uses them as indices")
    tracer.set_labels(call.output, labels)


@register_rule("aten.index_select")
def follow_index_select(tracer: Tracer, call: Call) -> None:
    """Pass on the other axes."""
    axis = call["dim"] % len(call["self"].shape)
    reason = f"{call.operation} in {call.module!r} looks them up by number"
    tracer.set_labels(
        call.output, [tracer.fix_axes(array, [axis], reason) for array in tracer.get_labels(call["self"])]
    )


@register_rule("aten.gather", "aten.take_along_dim")
def follow_gather(tracer: Tracer, call: Call) -> None:
    """Pin every axis along which the index has several places."""
    reason = f"{call.operation} in {call.module!r} looks them up by number"
    for value in call.inputs:
        for array in tracer.get_labels(value):
            tracer.fix_axes(array, find_axes(array), reason)


@register_rule("aten.one_hot", "aten.bucketize", "aten.searchsorted", "aten.histc", "aten.bincount")
def follow_counts(tracer: Tracer, call: Call) -> None:
    """Pin everything: values become positions."""
    for value in call.inputs:
        for array in tracer.get_labels(value):
            tracer.fix_axes(array, np.arange(array.ndim).tolist(), f"{call.operation} uses their values as positions")
