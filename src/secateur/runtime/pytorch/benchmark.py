"""Benchmark sparse candidates against a dense layer, and decide whether to replace it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple

import torch
from torch import nn

from secateur.errors import LayerError
from secateur.runtime.pytorch.candidates import INT8_TOLERANCE, SparseCandidate, find_candidates
from secateur.runtime.pytorch.layers import SparseLayer
from secateur.runtime.pytorch.recognized_weight import RecognizedWeight
from secateur.runtime.pytorch.timing import BUDGET, Clock, measure_medians
from secateur.runtime.report import LayerReport

__all__ = [
    "CompileOptions",
    "ObservedCall",
    "ReplacementDecision",
    "benchmark_layer",
    "get_tolerance",
    "keep_dense",
    "reject_slow_replacement",
]

MAX_TIME_RATIO = 0.95
"""A layer is replaced only if the sparse layer takes at most this fraction of the dense time."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Largest allowed difference from the dense outputs for each type, relative to the largest dense output."""

CPU_BUDGET = 0.05
"""Seconds to spend on a candidate on the CPU, where the fastest one is timed again inside the model."""


class ReplacementDecision(NamedTuple):
    """The decision whether to replace a layer.

    Attributes:
        report: The report on the layer so far.
        replacement: The sparse layer, or ``None`` to keep the layer dense.
    """

    report: LayerReport
    replacement: SparseLayer | None


@dataclass(frozen=True, slots=True)
class ObservedCall:
    """A call of a layer by the model.

    Attributes:
        inputs: Random inputs with the shape, strides, type and device of the observed inputs.
        rows: Rows that the layer multiplies, i.e. output values per output channel.
    """

    inputs: torch.Tensor
    rows: int


class CompileOptions(NamedTuple):
    """The options of `secateur.runtime.compile`, and the clock that times the layers."""

    int8: bool
    cuda_graphs: bool
    clock: Clock = perf_counter


def benchmark_layer(
    report: LayerReport, layer: nn.Module, call: ObservedCall | None, options: CompileOptions
) -> ReplacementDecision:
    """Find the fastest candidate with correct outputs, even if it is slower than the dense layer.

    Args:
        report: The report on the layer so far. If it has a reason, the layer stays dense.
        layer: The dense layer.
        call: A call of the layer by the model, or ``None`` if there was none.
        options: The options of `secateur.runtime.compile`.
    """
    if report.reason or call is None:
        return ReplacementDecision(report, None)
    dtype = layer.get_parameter("weight").dtype
    if call.inputs.dtype is not dtype:  # under autocast
        reason = f"its inputs are {call.inputs.dtype}, but its weight is {dtype}"
        return ReplacementDecision(replace(report, reason=reason), None)
    pruned = RecognizedWeight.from_layer(layer)
    report = replace(report, pattern=pruned.pattern, sparsity=pruned.sparsity)
    best = ReplacementDecision(report, None)
    reasons: list[str] = []
    for candidate in find_candidates(layer, pruned, call.rows, int8=options.int8):
        if isinstance(candidate, str):
            reasons.append(candidate)
            continue
        result = _benchmark_candidate(report, layer, candidate, call, options)
        if result.report.sparse_seconds is None:
            reasons.append(result.report.reason)
        elif best.report.sparse_seconds is None or result.report.sparse_seconds < best.report.sparse_seconds:
            best = result
    if best.replacement is None:
        return ReplacementDecision(replace(report, reason="; ".join(dict.fromkeys(reasons))), None)
    return best


def reject_slow_replacement(decision: ReplacementDecision) -> ReplacementDecision:
    """Keep a layer dense if its replacement is not faster."""
    report = decision.report
    if (
        decision.replacement is None
        or report.sparse_seconds is None
        or report.sparse_seconds <= MAX_TIME_RATIO * report.dense_seconds
    ):
        return decision
    return keep_dense(report, f"{report.chosen} is not faster")


def get_tolerance(layer: nn.Module, candidate: str = "") -> float:
    """Return the largest allowed difference from the dense outputs, relative to the largest dense output.

    Args:
        layer: The dense or sparse layer.
        candidate: Name of the candidate, if the layer is sparse.
    """
    dtype = layer.dtype if isinstance(layer, SparseLayer) else layer.get_parameter("weight").dtype
    return INT8_TOLERANCE if candidate.endswith("int8") else TOLERANCE[dtype]


def keep_dense(report: LayerReport, reason: str) -> ReplacementDecision:
    """Return the decision to keep a layer dense for a reason."""
    report = replace(report, chosen="dense", reason=reason, bytes=report.dense_bytes, error=0.0)
    return ReplacementDecision(report, None)


def _benchmark_candidate(
    report: LayerReport, layer: nn.Module, candidate: SparseCandidate, call: ObservedCall, options: CompileOptions
) -> ReplacementDecision:
    dense_outputs = layer(call.inputs)
    try:
        sparse_layer = candidate.build()
        sparse_outputs = sparse_layer(call.inputs)
    except LayerError as error:
        return ReplacementDecision(replace(report, reason=str(error)), None)
    largest = dense_outputs.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    difference = float((dense_outputs - sparse_outputs).abs().max() / largest)
    if not difference <= (candidate.tolerance or TOLERANCE[call.inputs.dtype]):
        return ReplacementDecision(replace(report, reason=f"{candidate.name} differs by {difference:.1e}"), None)
    dense_seconds, sparse_seconds = measure_medians(
        [lambda: layer(call.inputs), lambda: sparse_layer(call.inputs)],
        call.inputs.device,
        CPU_BUDGET if call.inputs.is_cpu else BUDGET,
        cuda_graph=options.cuda_graphs,
        clock=options.clock,
    )
    return ReplacementDecision(
        replace(
            report,
            dense_seconds=dense_seconds,
            sparse_seconds=sparse_seconds,
            chosen=candidate.name,
            reason=candidate.reason,
            bytes=sparse_layer.nbytes,
            error=difference,
        ),
        sparse_layer,
    )
