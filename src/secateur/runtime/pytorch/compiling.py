"""A model's layers, each tried in every way that its zeros allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from secateur.errors import ConfigError, LayerError, StateError
from secateur.oneshot.pytorch.batches import Batch, read_batches
from secateur.patterns.pytorch import families
from secateur.planning.pytorch import unwrapped
from secateur.runtime.pytorch.layers import ExchangedLayer, parts
from secateur.runtime.pytorch.timing import medians
from secateur.runtime.pytorch.ways import Way, refusal, ways, zeroed
from secateur.runtime.report import LayerRow, RuntimeReport

__all__ = ["compile_model"]

NOTABLE = 0.95
"""A layer is exchanged if it takes at most this share of the dense time."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Type → the greatest difference of outputs from dense ones, over the largest dense output."""

WHOLE_BUDGET = 0.5
"""Seconds to spend on timing a whole model."""


Tried: TypeAlias = tuple[LayerRow, ExchangedLayer | None]
"""What became of a layer, and what takes its place."""


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


def compile_model(
    model: nn.Module, example_inputs: Any, *, int8: bool = False, cuda_graphs: bool = False
) -> RuntimeReport:
    """See `secateur.runtime.compile`."""
    inner = unwrapped(model)
    if training := [name for name, module in inner.named_modules() if module.training]:
        raise StateError(
            f"The runtime is for inference, and {training[0] or 'the model'!r} is in training mode. Call model.eval()."
        )
    device = next((weight.device for weight in inner.parameters()), torch.device("cpu"))
    if cuda_graphs and device.type != "cuda":
        raise ConfigError(f"cuda_graphs is for models on a GPU, and this one is on {device}. Move it, or leave it out.")
    (batch,) = read_batches(inner, [example_inputs])
    layers = {name: layer for name, layer in inner.named_modules() if families(layer) and _has_weight(layer)}
    wanted = Wanted(int8, cuda_graphs)
    with torch.no_grad():
        calls = _observed(inner, layers, batch)
        (before,) = medians([lambda: batch.run(inner, None)], device, WHOLE_BUDGET)
        owners = Counter(id(layer.weight) for layer in layers.values())
        tried = {
            name: _tried(_row(name, layer, calls.get(name), owners[id(layer.weight)]), layer, calls.get(name), wanted)
            for name, layer in layers.items()
        }
        for name, (_, exchanged) in tried.items():
            if exchanged is not None:
                _put(inner, name, exchanged)
        (after,) = medians([lambda: batch.run(inner, None)], device, WHOLE_BUDGET)
    return RuntimeReport(
        layers=tuple(row for row, _ in tried.values()),
        threads=torch.get_num_threads(),
        device=str(device),
        dense_seconds=before,
        seconds=after,
        cuda_graphs=cuda_graphs,
    )


def _has_weight(layer: nn.Module) -> bool:
    return isinstance(layer._parameters.get("weight"), torch.Tensor)


def _observed(model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch) -> dict[str, Call]:
    """How each layer is called, where it is; the last call counts."""
    calls: dict[str, Call] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
            if args and isinstance(args[0], torch.Tensor) and args[0].numel() and isinstance(outputs, torch.Tensor):
                channels = outputs.shape[1 if isinstance(layer, nn.Conv2d) and outputs.ndim == 4 else -1]
                calls[name] = Call(torch.randn_like(args[0]), outputs.numel() // channels)

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(note(name)).remove)
        batch.run(model, None)
    return calls


def _row(name: str, layer: nn.Module, call: Call | None, owners: int) -> LayerRow:
    """What is known of a layer that stays dense, with the reason if it must."""
    weight, _ = parts(layer)
    row = LayerRow(
        name=name,
        shape=tuple(weight.shape),
        pattern=None,
        sparsity=0.0,
        dense_bytes=weight.nbytes,
        bytes=weight.nbytes,
        rows=0 if call is None else call.rows,
        reason=refusal(layer, owners),
    )
    if call is None and not row.reason:
        return replace(row, reason="it is not called with the example inputs")
    return row


def _tried(plain: LayerRow, layer: nn.Module, call: Call | None, wanted: Wanted) -> Tried:
    """What became of a layer, and what takes its place."""
    if plain.reason or call is None:
        return plain, None
    found = zeroed(layer)
    plain = replace(plain, pattern=found.pattern, sparsity=found.sparsity)
    best: Tried = plain, None
    reasons: list[str] = []
    for way in ways(layer, found, call.rows, int8=wanted.int8):
        if isinstance(way, str):
            reasons.append(way)
            continue
        row, exchanged = _compared(plain, layer, way, call, wanted)
        if row.sparse_seconds is None:
            reasons.append(row.reason)
        elif best[0].sparse_seconds is None or row.sparse_seconds < best[0].sparse_seconds:
            best = row, exchanged
    if best[0].sparse_seconds is None:
        return replace(plain, reason="; ".join(dict.fromkeys(reasons))), None
    return best


def _compared(plain: LayerRow, layer: nn.Module, way: Way, call: Call, wanted: Wanted) -> Tried:
    """A layer against another way to run it."""
    dense = layer(call.inputs)
    try:
        other = way.build()
        sparse = other(call.inputs)
    except LayerError as error:
        return replace(plain, reason=str(error)), None
    difference = float((dense - sparse).abs().max() / dense.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    runs = [lambda: layer(call.inputs), lambda: other(call.inputs)]
    before, after = medians(runs, call.inputs.device, cuda_graph=wanted.cuda_graphs)
    row = replace(plain, dense_seconds=before, sparse_seconds=after)
    if not difference <= (way.tolerance or TOLERANCE[call.inputs.dtype]):
        return replace(row, sparse_seconds=None, reason=f"{way.name} differs by {difference:.1e}"), None
    if after > NOTABLE * before:
        return replace(row, reason=f"{way.name} is not faster"), None
    return replace(row, chosen=way.name, reason=way.reason, bytes=other.nbytes, error=difference), other


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    path, _, own = name.rpartition(".")
    setattr(model.get_submodule(path), own, layer)
