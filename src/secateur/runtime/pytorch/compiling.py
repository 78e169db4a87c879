"""The layers of a model, exchanged where that is faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.errors import ConfigError, StateError
from secateur.oneshot.pytorch.batches import read_batches
from secateur.patterns.pytorch import families
from secateur.planning.pytorch import unwrapped
from secateur.runtime.pytorch.layers import parts
from secateur.runtime.pytorch.trying import Call, Tried, Wanted, kept, settled, tried
from secateur.runtime.pytorch.turns import layer_seconds, model_seconds, put
from secateur.runtime.pytorch.ways import refusal
from secateur.runtime.report import LayerRow, RuntimeReport

__all__ = ["compile_model"]

WORTHWHILE = 1.0
"""A model stays dense if with layers exchanged it takes more than this share of the dense time."""

HOPELESS = 0.5
"""A layer that is less fast than this alone, dense being 1, is not timed within the model."""


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
    wanted, call = Wanted(int8, cuda_graphs), partial(batch.run, inner, None)
    with torch.no_grad():
        calls = _observed(layers, call)
        owners = Counter(id(layer.weight) for layer in layers.values())
        alone = {
            name: tried(_row(name, layer, calls.get(name), owners[id(layer.weight)]), layer, calls.get(name), wanted)
            for name, layer in layers.items()
        }
        chosen = {name: settled(*one) for name, one in (alone | _within(inner, call, alone, calls)).items()}
        others = {name: other for name, (_, other) in chosen.items() if other is not None}
        before, after = model_seconds(inner, call, others, device)
        rows = [row for row, _ in chosen.values()]
        if after > WORTHWHILE * before and not cuda_graphs:  # calls of the model are not in graphs
            others, after, rows = {}, before, [_kept(row) for row in rows]
        put(inner, others)
    return RuntimeReport(
        layers=tuple(rows),
        threads=torch.get_num_threads(),
        device=str(device),
        dense_seconds=before,
        seconds=after,
        cuda_graphs=cuda_graphs,
    )


def _has_weight(layer: nn.Module) -> bool:
    return isinstance(layer._parameters.get("weight"), torch.Tensor)


def _observed(layers: Mapping[str, nn.Module], call: Callable[[], object]) -> dict[str, Call]:
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
        call()
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


def _kept(row: LayerRow) -> LayerRow:
    return row if row.chosen == "dense" else kept(row, f"{row.chosen} is faster, but not the whole model")


def _within(
    model: nn.Module, call: Callable[[], object], alone: Mapping[str, Tried], calls: Mapping[str, Call]
) -> dict[str, Tried]:
    """What was tried on the CPU alone, with the times of the model's own calls."""
    promising = {
        name: other
        for name, (row, other) in alone.items()
        if other is not None and calls[name].inputs.is_cpu and (row.speedup or 0) >= HOPELESS
    }
    times = layer_seconds(model, call, promising)
    return {
        name: (replace(alone[name][0], dense_seconds=before, sparse_seconds=after), promising[name])
        for name, (before, after) in times.items()
    }
