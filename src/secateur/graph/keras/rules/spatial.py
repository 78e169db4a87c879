"""Rules for pooling, resampling, padding and cropping of positions, which treat all channels in the same way."""

from __future__ import annotations

from secateur.graph.keras.layer_rules import register_layer_rule
from secateur.graph.keras.rules.convolution import find_channel_axis
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

KINDS = "AveragePooling MaxPooling AdaptiveAveragePooling AdaptiveMaxPooling UpSampling ZeroPadding Cropping"
LINES = ("UpSampling1D", "ZeroPadding1D", "Cropping1D")
"""Layers for sequences. Two of them have no data format, because their channels are always last."""

IMAGES = [name for kind in KINDS.split() for rank in (1, 2, 3) if (name := f"{kind}{rank}D") not in LINES]
OPERATIONS = "max_pool average_pool adaptive_max_pool adaptive_average_pool"


@register_layer_rule(*IMAGES)
def follow_positions(tracer: Tracer, call: Call) -> None:
    """Pass on the channels and the batch."""
    _follow(tracer, call, call["inputs"], find_channel_axis(call, call["inputs"]))


@register_layer_rule("Resizing", "CenterCrop")
def follow_resizing(tracer: Tracer, call: Call) -> None:
    """Pass on the channels and the batch."""
    _follow(tracer, call, call["data"], find_channel_axis(call, call["data"]))


@register_layer_rule(*LINES)
def follow_steps(tracer: Tracer, call: Call) -> None:
    """Pass on the channels and the batch; channels are last, unless padding has a data format."""
    layout = getattr(call["operation"], "data_format", None)
    _follow(tracer, call, call["inputs"], 1 if layout == "channels_first" else 2)


@register_rule(*(f"keras.ops.{name}" for name in OPERATIONS.split()))
def follow_pooling_operation(tracer: Tracer, call: Call) -> None:
    """Pass on the channels and the batch; see the rules of the layers."""
    _follow(tracer, call, call["inputs"], find_channel_axis(call, call["inputs"]))


@register_rule("keras.ops.resize")
def follow_resize(tracer: Tracer, call: Call) -> None:
    """Pass on the channels and the batch."""
    _follow(tracer, call, call["images"], find_channel_axis(call, call["images"]))


def _follow(tracer: Tracer, call: Call, value: Value, channel: int) -> None:
    positions = [axis for axis in range(1, len(value.shape)) if axis != channel]
    labels = [tracer.fix_axes(array, positions, "combines positions") for array in tracer.get_labels(value)]
    tracer.set_labels(call.output, labels)
