"""Rules for layers and operations that combine the elements along an axis."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.alignment import drop_axes
from secateur.graph.keras.layer_rules import register_layer_rule
from secateur.graph.keras.rules.convolution import find_channel_axis
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import fix_scanned_axis
from secateur.graph.tracer import Tracer

__all__: list[str] = []

REDUCTIONS = (
    "all amax amin any argmax argmin count_nonzero logsumexp max mean median min nanmax nanmean nanmin nanstd nansum "
    "nanvar norm prod ptp std sum var"
)
SCANS = "cumprod cumsum log_softmax softmax sparsemax"
POOLINGS = tuple(f"Global{kind}Pooling{rank}D" for kind in ("Average", "Max") for rank in (1, 2, 3))


@register_rule(*(f"keras.ops.{name}" for name in REDUCTIONS.split()))
def follow_reduction(tracer: Tracer, call: Call) -> None:
    """Drop the reduced axes. Labels that depend on these alone are inexact."""
    _reduce(tracer, call.output, call["x"], _read_axes(call, call["x"]))


@register_rule("keras.ops.moments")
def follow_moments(tracer: Tracer, call: Call) -> None:
    """Drop the reduced axes, for both results."""
    rank, axes = len(call["x"].shape), call["operation"].axes
    for output in call.outputs:
        assert output is not None
        _reduce(tracer, output, call["x"], [axis % rank for axis in ([axes] if isinstance(axes, int) else axes)])


@register_layer_rule(*POOLINGS)
def follow_global_pooling(tracer: Tracer, call: Call) -> None:
    """Drop all positions."""
    value = call["inputs"]
    channel = find_channel_axis(call, value)
    _reduce(tracer, call.output, value, [axis for axis in range(1, len(value.shape)) if axis != channel])


def _reduce(tracer: Tracer, output: Value, value: Value, axes: Sequence[int]) -> None:
    labels = drop_axes(tracer, tracer.get_labels(value), axes)
    is_kept = len(output.shape) == len(value.shape)
    tracer.set_labels(output, labels if is_kept else [array.squeeze(tuple(axes)) for array in labels])


def _read_axes(call: Call, value: Value) -> list[int]:
    rank, axis = len(value.shape), call["operation"].axis
    if axis is None:
        return list(range(rank))
    return sorted({item % rank for item in ([axis] if isinstance(axis, int) else axis)})


@register_rule(*(f"keras.ops.{name}" for name in SCANS.split()))
def follow_scan(tracer: Tracer, call: Call) -> None:
    """Keep the shape. Labels along the axis are inexact: every element depends on the others."""
    if call["operation"].axis is None and len(call["x"].shape) != len(call.output.shape):
        tracer.stop("flattens its input")
        return
    axes = _read_axes(call, call["x"])
    tracer.set_labels(call.output, fix_scanned_axis(tracer, tracer.get_labels(call["x"]), axes))


@register_layer_rule("Softmax")
def follow_softmax(tracer: Tracer, call: Call) -> None:
    """As the operation."""
    axes = _read_axes(call, call["inputs"])
    tracer.set_labels(call.output, fix_scanned_axis(tracer, tracer.get_labels(call["inputs"]), axes))


@register_rule("keras.ops.sort", "keras.ops.argsort", "keras.ops.top_k")
def follow_order(tracer: Tracer, call: Call) -> None:
    """Pin the axis that is ordered, and pass on the others."""
    rank = len(call["x"].shape)
    axis = getattr(call["operation"], "axis", -1)
    if axis is None:
        tracer.stop("flattens its input")
        return
    labels = [tracer.fix_axes(array, [axis % rank], "orders them") for array in tracer.get_labels(call["x"])]
    for output in call.outputs:
        if output is not None and len(output.shape) == rank:
            tracer.set_labels(output, labels)
