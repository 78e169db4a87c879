"""Rules for operations that combine the elements along an axis."""

from __future__ import annotations

from secateur.graph.alignment import drop_axes
from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import fix_scanned_axis
from secateur.graph.tracer import Tracer

__all__: list[str] = []

REDUCTIONS = (
    "all amax amin any argmax argmin count_nonzero frobenius_norm linalg_norm linalg_vector_norm logsumexp max mean "
    "median min nanmean nansum norm prod std std_mean sum var var_mean"
)
SCANS = "cumsum cumprod cummax cummin logcumsumexp softmax _softmax log_softmax _log_softmax softmin _safe_softmax"
ORDERS = "sort argsort topk kthvalue msort"


@register_rule(*(f"aten.{name}" for name in REDUCTIONS.split()))
def follow_reduction(tracer: Tracer, call: Call) -> None:
    """Drop the reduced axes. Labels that depend on these alone are inexact."""
    if "other" in call.arguments:  # the elementwise maximum of two tensors
        tracer.stop("has no rule for two tensors")
        return
    value = call.get("self", call.get("input"))
    rank = len(value.shape)
    axes = _read_axes(call.get("dim"), rank)
    labels = drop_axes(tracer, tracer.get_labels(value), axes)
    for output in call.outputs:
        assert output is not None
        keeps = len(output.shape) == rank
        tracer.set_labels(output, labels if keeps else [array.squeeze(tuple(axes)) for array in labels])


def _read_axes(dim: int | list[int] | None, rank: int) -> list[int]:
    if dim is None or dim == []:
        return list(range(rank))
    return sorted({axis % rank for axis in ([dim] if isinstance(dim, int) else dim)}) if rank else []


@register_rule(*(f"aten.{name}" for name in SCANS.split()))
def follow_scan(tracer: Tracer, call: Call) -> None:
    """Keep the shape. Labels along the axis are inexact: every element depends on the others."""
    value = call.get("self", call.get("input"))
    axis = call["dim"] % max(len(value.shape), 1)
    labels = fix_scanned_axis(tracer, tracer.get_labels(value), [axis])
    for output in call.outputs:
        assert output is not None
        tracer.set_labels(output, labels)


@register_rule(*(f"aten.{name}" for name in ORDERS.split()))
def follow_order(tracer: Tracer, call: Call) -> None:
    """Pin the axis that is ordered, and pass on the others."""
    value = call["self"]
    axis = (call.get("dim", -1) if "dim" in call.arguments else 0) % max(len(value.shape), 1)
    reason = "orders them"
    labels = [tracer.fix_axes(array, [axis], reason) for array in tracer.get_labels(value)]
    for output in call.outputs:
        assert output is not None
        keeps = len(output.shape) == len(value.shape)
        tracer.set_labels(output, labels if keeps else [array.squeeze(axis) for array in labels])
