"""Rules for norms. Where statistics are taken over the units, removing one changes the others: it is inexact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.graph.alignment import Operand, align, align_vectors
from secateur.graph.keras.layer_rules import get_weight, register_layer_rule
from secateur.graph.labels import Labels, find_axes, reshape_labels
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import fix_scanned_axis
from secateur.graph.tracer import Tracer

__all__: list[str] = []

STATISTICS = "takes statistics over them"
BATCH_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")


@register_layer_rule("BatchNormalization", weights=BATCH_WEIGHTS)
def follow_batch_normalization(tracer: Tracer, call: Call) -> None:
    """Every channel has its own statistics."""
    vectors = list(call["weights"].values())
    tracer.set_labels(call.output, align_vectors(tracer, call["inputs"], vectors, call["operation"].axis))


@register_rule("keras.ops.batch_normalization")
def follow_batch_operation(tracer: Tracer, call: Call) -> None:
    """As the layer."""
    vectors = [call.get(name) for name in ("mean", "variance", "offset", "scale")]
    tracer.set_labels(call.output, align_vectors(tracer, call["x"], vectors, call["operation"].axis))


@register_layer_rule("LayerNormalization", weights=("gamma", "beta"))
def follow_layer_normalization(tracer: Tracer, call: Call) -> None:
    """Statistics are taken over the axes of the layer."""
    weights = [get_weight(call, "gamma"), get_weight(call, "beta")]
    _normalize(tracer, call, call["inputs"], _read_axes(call, call["inputs"]), weights)


@register_layer_rule("RMSNormalization", weights=("scale",))
def follow_rms_normalization(tracer: Tracer, call: Call) -> None:
    """The root mean square is taken over the axes of the layer."""
    _normalize(tracer, call, call["x"], _read_axes(call, call["x"]), [get_weight(call, "scale")])


@register_rule("keras.ops.layer_normalization", "keras.ops.rms_normalization")
def follow_norm_operation(tracer: Tracer, call: Call) -> None:
    """As the layers."""
    weights = [call.get(name) for name in ("gamma", "beta", "scale")]
    _normalize(tracer, call, call["x"], _read_axes(call, call["x"]), weights)


@register_layer_rule("UnitNormalization")
def follow_unit_normalization(tracer: Tracer, call: Call) -> None:
    """The length is taken over the axes of the layer."""
    _normalize(tracer, call, call["inputs"], _read_axes(call, call["inputs"]), [])


@register_rule("keras.ops.normalize")
def follow_normalize(tracer: Tracer, call: Call) -> None:
    """The length is taken over the axes of the operation."""
    _normalize(tracer, call, call["x"], _read_axes(call, call["x"]), [])


def _read_axes(call: Call, value: Value) -> list[int]:
    axes = call["operation"].axis
    axes = range(len(value.shape)) if axes is None else axes
    return sorted({axis % len(value.shape) for axis in ([axes] if isinstance(axes, int) else axes)})


def _normalize(tracer: Tracer, call: Call, value: Value, axes: Sequence[int], weights: Sequence[Value | None]) -> None:
    """Mark labels along the normalized axes inexact. The weights have these axes, in the order of the tensor."""
    rank = len(value.shape)
    operands = [Operand(value.shape, fix_scanned_axis(tracer, tracer.get_labels(value), axes, STATISTICS))]
    for weight in weights:
        if weight is not None:
            places = axes if len(weight.shape) == len(axes) else range(rank - len(weight.shape), rank)
            operands.append(Operand.from_value(tracer, weight, places, rank))
    tracer.set_labels(call.output, align(tracer, operands))


@register_layer_rule("GroupNormalization", weights=("gamma", "beta"))
def follow_group_normalization(tracer: Tracer, call: Call) -> None:
    """Every group of channels has its own statistics, so whole groups are units."""
    layer, value = call["operation"], call["inputs"]
    axis = layer.axis % len(value.shape)
    labels = align_vectors(tracer, value, [get_weight(call, "gamma"), get_weight(call, "beta")], axis)
    kept: list[Labels] = []
    for array in labels:
        own = [other for other in find_axes(array) if other not in (0, axis)]
        array = tracer.fix_axes(array, own, STATISTICS)
        kept.append(array)
        if array.shape[axis] == 1:
            continue
        if layer.groups == 1:
            tracer.mark_inexact(array, STATISTICS)
            continue
        split = (*value.shape[:axis], layer.groups, value.shape[axis] // layer.groups, *value.shape[axis + 1 :])
        channels = reshape_labels(array, value.shape, split)
        if channels.shape[axis + 1] > 1:
            tracer.unite(channels, np.take(channels, [0], axis=axis + 1))
    tracer.set_labels(call.output, kept)


@register_layer_rule("Normalization", weights=("mean", "variance", "count"))
def follow_feature_normalization(tracer: Tracer, call: Call) -> None:
    """Keep the statistics of the features, which are those of the model's inputs."""
    for value in call.inputs:
        for array in tracer.get_labels(value):
            tracer.pin(array, "has statistics of the model's inputs")
