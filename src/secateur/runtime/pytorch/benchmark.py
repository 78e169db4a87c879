"""Benchmark the candidates for one layer against the dense layer, and decide whether to replace it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from secateur.errors import LayerError
from secateur.runtime.pytorch.candidates import INT8_TOLERANCE, SparseCandidate, find_candidates
from secateur.runtime.pytorch.layers import SparseLayer
from secateur.runtime.pytorch.pruned_weight import PrunedWeight
from secateur.runtime.pytorch.timing import BUDGET, measure_medians
from secateur.runtime.report import LayerReport

__all__ = [
    "CompileOptions",
    "LayerDecision",
    "ObservedCall",
    "benchmark_layer",
    "decide",
    "get_tolerance",
    "keep_dense",
]

MAX_TIME_RATIO = 0.95
"""A layer is replaced if its replacement takes at most this share of the dense time."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""How much outputs of each type may differ from the dense ones, relative to the largest dense output."""

CPU_BUDGET = 0.05
"""Seconds to spend on a candidate on the CPU, where the best one is timed within the model once more."""


class LayerDecision(NamedTuple):
    """What happens to a layer.

    Attributes:
        report: What is known of the layer.
        replacement: The layer that replaces it; ``None``: it stays dense.
    """

    report: LayerReport
    replacement: SparseLayer | None


@dataclass(frozen=True, slots=True)
class ObservedCall:
    """How the model calls a layer.

    Attributes:
        inputs: Random inputs with the shape, strides, type and device of the observed ones.
        rows: Rows that the layer multiplies: output values per output channel.
    """

    inputs: torch.Tensor
    rows: int


class CompileOptions(NamedTuple):
    """The options of `secateur.runtime.compile`; see there."""

    int8: bool
    cuda_graphs: bool


def benchmark_layer(
    report: LayerReport, layer: nn.Module, call: ObservedCall | None, options: CompileOptions
) -> LayerDecision:
    """Find the fastest candidate whose outputs are correct, even if it is slower than dense.

    Args:
        report: What is known of the layer; with a reason if it must stay dense.
        layer: The layer.
        call: How the model calls it.
        options: The options of `secateur.runtime.compile`.
    """
    if report.reason or call is None:
        return LayerDecision(report, None)
    dtype = layer.get_parameter("weight").dtype
    if call.inputs.dtype is not dtype:  # under autocast
        return LayerDecision(replace(report, reason=f"its inputs are {call.inputs.dtype}, its weight {dtype}"), None)
    pruned = PrunedWeight.from_layer(layer)
    report = replace(report, pattern=pruned.pattern, sparsity=pruned.sparsity)
    best = LayerDecision(report, None)
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
        return LayerDecision(replace(report, reason="; ".join(dict.fromkeys(reasons))), None)
    return best


def decide(decision: LayerDecision) -> LayerDecision:
    """Keep a layer dense unless its replacement is faster."""
    report = decision.report
    if (
        decision.replacement is None
        or report.sparse_seconds is None
        or report.sparse_seconds <= MAX_TIME_RATIO * report.dense_seconds
    ):
        return decision
    return keep_dense(report, f"{report.chosen} is not faster")


def get_tolerance(layer: nn.Module, candidate: str = "") -> float:
    """Return how much outputs may differ from the dense ones, relative to the largest of these.

    Args:
        layer: The layer, dense or replaced.
        candidate: Name of the candidate that replaced it.
    """
    dtype = layer.dtype if isinstance(layer, SparseLayer) else layer.get_parameter("weight").dtype
    return INT8_TOLERANCE if candidate.endswith("int8") else TOLERANCE[dtype]


def keep_dense(report: LayerReport, reason: str) -> LayerDecision:
    """Decide that a layer stays dense after all."""
    return LayerDecision(replace(report, chosen="dense", reason=reason, bytes=report.dense_bytes, error=0.0), None)


def _benchmark_candidate(
    report: LayerReport, layer: nn.Module, candidate: SparseCandidate, call: ObservedCall, options: CompileOptions
) -> LayerDecision:
    dense_outputs = layer(call.inputs)
    try:
        sparse_layer = candidate.build()
        sparse_outputs = sparse_layer(call.inputs)
    except LayerError as error:
        return LayerDecision(replace(report, reason=str(error)), None)
    largest = dense_outputs.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    difference = float((dense_outputs - sparse_outputs).abs().max() / largest)
    if not difference <= (candidate.tolerance or TOLERANCE[call.inputs.dtype]):
        return LayerDecision(replace(report, reason=f"{candidate.name} differs by {difference:.1e}"), None)
    dense_seconds, sparse_seconds = measure_medians(
        [lambda: layer(call.inputs), lambda: sparse_layer(call.inputs)],
        call.inputs.device,
        CPU_BUDGET if call.inputs.is_cpu else BUDGET,
        cuda_graph=options.cuda_graphs,
    )
    return LayerDecision(
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
