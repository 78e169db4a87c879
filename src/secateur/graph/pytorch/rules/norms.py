"""Rules for norms. Where statistics are taken over the units, removing one changes the others: it is inexact."""

from __future__ import annotations

import numpy as np

from secateur.graph.alignment import align_values, align_vectors
from secateur.graph.labels import find_axes, reshape_labels
from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

CHANNEL_NORMS = (
    "batch_norm instance_norm cudnn_batch_norm native_batch_norm _batch_norm_impl_index _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _batch_norm_with_update"
)


@register_rule(*(f"aten.{name}" for name in CHANNEL_NORMS.split()))
def follow_channel_norm(tracer: Tracer, call: Call) -> None:
    """Every channel has its own statistics, scale and shift."""
    vectors = [call.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    tracer.set_labels(call.output, align_vectors(tracer, call["input"], vectors, 1))


@register_rule("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def follow_layer_norm(tracer: Tracer, call: Call) -> None:
    """Statistics are taken over the last axes."""
    value, rank = call["input"], len(call["input"].shape)
    last = rank - len(call["normalized_shape"])
    reason = "takes statistics over them"
    for array in tracer.get_labels(value):
        axes = find_axes(array)
        if any(axis >= last for axis in axes):
            if all(axis >= last for axis in axes):
                tracer.mark_inexact(array, reason)
            else:
                tracer.fix_axes(array, range(last, rank), reason)
    if last == rank - 1:
        tracer.set_labels(call.output, align_vectors(tracer, value, [call.get("weight"), call.get("bias")], last))
        return
    labels = [tracer.fix_axes(array, range(last, rank), reason) for array in tracer.get_labels(value)]
    for parameter in (call.get("weight"), call.get("bias")):
        for array in () if parameter is None else tracer.get_labels(parameter):
            tracer.pin(array, reason)
    tracer.set_labels(call.output, labels)


@register_rule("aten.group_norm", "aten.native_group_norm")
def follow_group_norm(tracer: Tracer, call: Call) -> None:
    """Every group of channels has its own statistics, so that whole groups are units."""
    value, groups = call["input"], call.get("num_groups", call.get("group"))
    labels = align_vectors(tracer, value, [call.get("weight"), call.get("bias")], 1)
    reason = "takes statistics over them"
    split = (value.shape[0], groups, value.shape[1] // groups, *value.shape[2:])
    for array in labels:
        if array.shape[1] == 1:
            continue
        if groups == 1:
            tracer.mark_inexact(array, reason)
            continue
        channels = reshape_labels(array, value.shape, split)
        if channels.shape[2] > 1:
            tracer.unite(channels, np.take(channels, [0], axis=2))
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
