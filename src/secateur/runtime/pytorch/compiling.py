"""The layers of a model, exchanged where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.errors import CalibrationError, ConfigError, StateError
from secateur.frameworks.pytorch import unwrap_model
from secateur.runtime.pytorch.checking import Candidate, OutputCheck, shortened
from secateur.runtime.pytorch.example import fixed_seed, read_example
from secateur.runtime.pytorch.operator import is_strided
from secateur.runtime.pytorch.survey import survey
from secateur.runtime.pytorch.trying import Call, Tried, Wanted, kept, settled, tolerance_of, tried
from secateur.runtime.pytorch.turns import layer_seconds, model_seconds, replace_layers
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
    inner = unwrap_model(model)
    if training := [name for name, module in inner.named_modules() if module.training]:
        raise StateError(
            f"The runtime is for inference, and {training[0] or 'the model'!r} is in training mode. Call model.eval()."
        )
    device = next((weight.device for weight in inner.parameters()), torch.device("cpu"))
    if cuda_graphs and device.type != "cuda":
        raise ConfigError(f"cuda_graphs is for models on a GPU, and this one is on {device}. Move it, or leave it out.")
    example, wanted = read_example(example_inputs), Wanted(int8, cuda_graphs)
    call = partial(example.copy().run, inner)
    with torch.no_grad(), fixed_seed(device):
        check, rows = OutputCheck(inner, example, device), survey(inner)
        chosen = _choose(inner, rows, (call, check), wanted)
        others = {name: other for name, (_, other) in chosen.items() if other is not None}
        before, after = model_seconds(inner, call, others, device)
        rows = {name: row for name, (row, _) in chosen.items()}
        if after > WORTHWHILE * before and not cuda_graphs:  # calls of the model are not in graphs
            others, after, rows = {}, before, {name: _kept(row) for name, row in rows.items()}
    replace_layers(inner, others)
    return RuntimeReport(
        layers=tuple(rows.values()),
        threads=torch.get_num_threads(),
        device=str(device),
        dense_seconds=before,
        seconds=after,
        cuda_graphs=cuda_graphs,
    )


def _choose(
    model: nn.Module, rows: Mapping[str, LayerRow], calling: tuple[Callable[[], object], OutputCheck], wanted: Wanted
) -> dict[str, Tried]:
    """What becomes of every layer; the outputs of the model with the others in place are right.

    Args:
        model: The model; it is left as it was.
        rows: What is known of its layers.
        calling: Calls it, and compares its outputs.
        wanted: What `compile` was asked for.
    """
    (call, check), layers = calling, {name: model.get_submodule(name) for name in rows}
    free = {name: layers[name] for name, row in rows.items() if not row.reason}
    if reason := check.obstacle or (free and check.judge_noise(max(map(tolerance_of, free.values())))):
        return {name: (row if row.reason else replace(row, reason=reason), None) for name, row in rows.items()}
    calls, unseen = _observe_calls(free, call)
    alone = {
        name: tried(_with_call(row, calls.get(name), unseen), layers[name], calls.get(name), wanted)
        for name, row in rows.items()
    }
    alone = _without_wrong(check, alone)
    chosen = {name: settled(*one) for name, one in (alone | _within(model, call, alone, calls)).items()}
    return _without_wrong(check, chosen)


def _observe_calls(layers: Mapping[str, nn.Module], call: Callable[[], object]) -> tuple[dict[str, Call], str]:
    """How each layer is called, where it is, and why others are not; the last call counts."""
    seen: dict[str, tuple[torch.Tensor, torch.device, int]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
            inputs = args[0] if args else kwargs.get("input")
            if inputs is not None and _is_countable(inputs) and _is_countable(outputs):
                channels = outputs.shape[-3 if isinstance(layer, nn.Conv2d) else -1]
                like = torch.empty_strided(inputs.shape, inputs.stride(), dtype=inputs.dtype, device="meta")
                seen[name] = like, inputs.device, outputs.numel() // channels

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(note(name), with_kwargs=True).remove)
        try:
            call()
        except CalibrationError as error:
            return {}, f"the model cannot be observed: {shortened(error.__cause__ or error)}"
    calls = {name: Call(torch.randn_like(like, device=device), rows) for name, (like, device, rows) in seen.items()}
    return calls, "it is not called with the example inputs"


def _is_countable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and is_strided(value) and value.is_floating_point() and value.numel() > 0


def _with_call(row: LayerRow, call: Call | None, unseen: str) -> LayerRow:
    if call is not None:
        return replace(row, rows=call.rows)
    return row if row.reason else replace(row, reason=unseen)


def _kept(row: LayerRow) -> LayerRow:
    return row if row.chosen == "dense" else kept(row, f"{row.chosen} is faster, but not the whole model")


def _without_wrong(check: OutputCheck, found: dict[str, Tried]) -> dict[str, Tried]:
    """The same, with those dense whose replacements would change the model's outputs."""
    others = {
        name: Candidate(other, row.error, tolerance_of(other, row.chosen))
        for name, (row, other) in found.items()
        if other is not None
    }
    wrong = check.find_wrong_layers(others)
    return found | {name: (kept(found[name][0], f"{found[name][0].chosen}: {wrong[name]}"), None) for name in wrong}


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
