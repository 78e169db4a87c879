"""Rules for pooling, resampling and padding of positions, which treat all channels in the same way."""

from __future__ import annotations

from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

ONE_AXIS = (
    "avg_pool1d max_pool1d max_pool1d_with_indices adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d "
    "upsample_linear1d _upsample_nearest_exact1d reflection_pad1d replication_pad1d"
)
TWO_AXES = (
    "avg_pool2d max_pool2d max_pool2d_with_indices mkldnn_max_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d "
    "adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d replication_pad2d"
)
THREE_AXES = (
    "avg_pool3d max_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d "
    "upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d"
)


@register_rule(*(f"aten.{name}" for name in ONE_AXIS.split()))
def follow_line(tracer: Tracer, call: Call) -> None:
    """Pass on all axes but the last."""
    _follow_positions(tracer, call, 1)


@register_rule(*(f"aten.{name}" for name in TWO_AXES.split()))
def follow_image(tracer: Tracer, call: Call) -> None:
    """Pass on all axes but the last two."""
    _follow_positions(tracer, call, 2)


@register_rule(*(f"aten.{name}" for name in THREE_AXES.split()))
def follow_volume(tracer: Tracer, call: Call) -> None:
    """Pass on all axes but the last three."""
    _follow_positions(tracer, call, 3)


def _follow_positions(tracer: Tracer, call: Call, count: int) -> None:
    value = call.get("self", call.get("input"))
    rank = len(value.shape)
    reason = "combines them"
    labels = [tracer.fix_axes(array, range(rank - count, rank), reason) for array in tracer.get_labels(value)]
    for output in call.outputs:
        assert output is not None
        tracer.set_labels(output, labels)
