"""Rules for norms. Where statistics are taken over the units, removing one changes the others: it is inexact."""

from __future__ import annotations

import numpy as np

from secateur.graph.alignment import align_values, align_vectors
from secateur.graph.labels import find_axes, reshape_labels
from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

STATISTICS = "takes statistics over them"

CHANNEL_NORMS = (
    "batch_norm instance_norm cudnn_batch_norm native_batch_norm _batch_norm_impl_index _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _batch_norm_with_update"
)


@register_rule(*(f"aten.{name}" for name in CHANNEL_NORMS.split()))
def follow_channel_norm(tracer: Tracer, call: Call) -> None:
    """Every channel has its own scale and shift, and its own statistics, which may be those of the input."""
    vectors = [call.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    labels = align_vectors(tracer, call["input"], vectors, 1)
    if call.get("training", call.get("use_input_stats", True)):
        first = 2 if "instance" in call.operation else 0
        axes = [axis for axis in range(first, len(call.output.shape)) if axis != 1]
        labels = [tracer.fix_axes(array, axes, STATISTICS) for array in labels]
    tracer.set_labels(call.output, labels)


@register_rule("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def follow_layer_norm(tracer: Tracer, call: Call) -> None:
    """Statistics are taken over the last axes."""
    value, rank = call["input"], len(call["input"].shape)
    last = rank - len(call["normalized_shape"])
    for array in tracer.get_labels(value):
        axes = find_axes(array)
        if any(axis >= last for axis in axes):
            if all(axis >= last for axis in axes):
                tracer.mark_inexact(array, STATISTICS)
            else:
                tracer.fix_axes(array, range(last, rank), STATISTICS)
    if last == rank - 1:
        tracer.set_labels(call.output, align_vectors(tracer, value, [call.get("weight"), call.get("bias")], last))
        return
    labels = [tracer.fix_axes(array, range(last, rank), STATISTICS) for array in tracer.get_labels(value)]
    for parameter in (call.get("weight"), call.get("bias")):
        for array in () if parameter is None else tracer.get_labels(parameter):
            tracer.pin(array, STATISTICS)
    tracer.set_labels(call.output, labels)


@register_rule("aten.group_norm", "aten.native_group_norm")
def follow_group_norm(tracer: Tracer, call: Call) -> None:
    """Every group of channels has its own statistics, so whole groups are units."""
    value, groups = call["input"], call.get("num_groups", call.get("group"))
    labels = align_vectors(tracer, value, [call.get("weight"), call.get("bias")], 1)
    split = (value.shape[0], groups, value.shape[1] // groups, *value.shape[2:])
    labels = [tracer.fix_axes(array, range(2, len(value.shape)), STATISTICS) for array in labels]
    for array in labels:
        if groups > 1:
            channels = reshape_labels(array, value.shape, split)
            tracer.unite(channels, np.take(channels, [0], axis=2))
        elif array.shape[1] > 1:
            tracer.mark_inexact(array, STATISTICS)
    tracer.set_labels(call.output, labels)


@register_rule("aten._weight_norm", "aten._weight_norm_interface")
def follow_weight_norm(tracer: Tracer, call: Call) -> None:
    """A weight with a scale for each index of one axis, divided by its norm over all others."""
    labels = align_values(tracer, [call["v"], call["g"]], len(call.output.shape))
    axis = call.get("dim", 0) % len(call.output.shape)
    for array in labels:
        if array.shape[axis] == 1:
            tracer.mark_inexact(array, "takes a norm over them")
    tracer.set_labels(call.output, labels)
