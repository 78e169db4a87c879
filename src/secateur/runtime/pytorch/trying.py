"""One layer by itself, tried in every way that its zeros allow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from secateur.errors import LayerError
from secateur.runtime.pytorch.layers import ExchangedLayer
from secateur.runtime.pytorch.timing import BUDGET, medians
from secateur.runtime.pytorch.ways import INT8_TOLERANCE, Way, ways, zeroed
from secateur.runtime.report import LayerRow

__all__ = ["Call", "Tried", "Wanted", "kept", "settled", "tolerance_of", "tried"]

NOTABLE = 0.95
"""A layer is exchanged if it takes at most this share of the dense time."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Type → the greatest difference of outputs from dense ones, over the largest dense output."""

BRIEF = 0.05
"""Seconds to spend on a way on the CPU, beyond the fewest rounds: the best is timed within the model once more."""

Tried: TypeAlias = tuple[LayerRow, ExchangedLayer | None]
"""What became of a layer, and what may take its place."""


@dataclass(frozen=True, slots=True)
class Call:
    """How a layer was called.

    Attributes:
        inputs: Numbers of the shape, the type and the place of its inputs.
        rows: Products with the whole weight in it.
    """

    inputs: torch.Tensor
    rows: int


class Wanted(NamedTuple):
    """What `secateur.runtime.compile` was asked for; see there."""

    int8: bool
    cuda_graphs: bool


def tried(plain: LayerRow, layer: nn.Module, call: Call | None, wanted: Wanted) -> Tried:
    """The fastest of the ways whose outputs are right, be it faster than dense or not.

    Args:
        plain: What is known of the layer; with a reason if it must stay dense.
        layer: The layer.
        call: How it is called.
        wanted: What `compile` was asked for.
    """
    if plain.reason or call is None:
        return plain, None
    if call.inputs.dtype is not layer.get_parameter("weight").dtype:  # under autocast
        return replace(plain, reason=f"its inputs are {call.inputs.dtype}, unlike its weight"), None
    found = zeroed(layer)
    plain = replace(plain, pattern=found.pattern, sparsity=found.sparsity)
    best: Tried = plain, None
    reasons: list[str] = []
    for way in ways(layer, found, call.rows, int8=wanted.int8):
        if isinstance(way, str):
            reasons.append(way)
            continue
        row, other = _compared(plain, layer, way, call, wanted)
        if row.sparse_seconds is None:
            reasons.append(row.reason)
        elif best[0].sparse_seconds is None or row.sparse_seconds < best[0].sparse_seconds:
            best = row, other
    if best[1] is None:
        return replace(plain, reason="; ".join(dict.fromkeys(reasons))), None
    return best


def settled(row: LayerRow, other: ExchangedLayer | None) -> Tried:
    """Whether a layer is exchanged for the other that was found: not if that is not faster."""
    if other is None or row.sparse_seconds is None or row.sparse_seconds <= NOTABLE * row.dense_seconds:
        return row, other
    return kept(row, f"{row.chosen} is not faster"), None


def tolerance_of(layer: nn.Module, way: str = "") -> float:
    """What outputs of a layer may differ by from the dense ones, over the largest of these, if it runs in a way."""
    dtype = layer.dtype if isinstance(layer, ExchangedLayer) else layer.get_parameter("weight").dtype
    return INT8_TOLERANCE if way.endswith("int8") else TOLERANCE[dtype]


def kept(row: LayerRow, reason: str) -> LayerRow:
    """The row of a layer that stays dense after all."""
    return replace(row, chosen="dense", reason=reason, bytes=row.dense_bytes, error=0.0)


def _compared(plain: LayerRow, layer: nn.Module, way: Way, call: Call, wanted: Wanted) -> Tried:
    """A layer against another way to run it."""
    dense = layer(call.inputs)
    try:
        other = way.build()
        sparse = other(call.inputs)
    except LayerError as error:
        return replace(plain, reason=str(error)), None
    difference = float((dense - sparse).abs().max() / dense.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    if not difference <= (way.tolerance or TOLERANCE[call.inputs.dtype]):
        return replace(plain, reason=f"{way.name} differs by {difference:.1e}"), None
    before, after = medians(
        [lambda: layer(call.inputs), lambda: other(call.inputs)],
        call.inputs.device,
        BRIEF if call.inputs.is_cpu else BUDGET,
        cuda_graph=wanted.cuda_graphs,
    )
    row = replace(plain, dense_seconds=before, sparse_seconds=after)
    return replace(row, chosen=way.name, reason=way.reason, bytes=other.nbytes, error=difference), other
