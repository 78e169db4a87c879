"""Compile a model: inspect its layers, benchmark candidates, and replace the layers that get faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import nn

from secateur._calls.pytorch.example_inputs import fix_seed, parse_example_inputs
from secateur.errors import CalibrationError, ConfigError, StateError
from secateur.frameworks.pytorch import unwrap_model
from secateur.runtime.pytorch.baselines import BaselineTimer
from secateur.runtime.pytorch.benchmark import (
    CompileOptions,
    ObservedCall,
    ReplacementDecision,
    benchmark_layer,
    get_tolerance,
    keep_dense,
    reject_slow_replacement,
)
from secateur.runtime.pytorch.inspection import inspect_layers
from secateur.runtime.pytorch.interleaved_timing import time_layers, time_model
from secateur.runtime.pytorch.layers.base import is_strided
from secateur.runtime.pytorch.output_check import OutputCheck, Replacement, summarize_error
from secateur.runtime.pytorch.replacement import replace_modules
from secateur.runtime.pytorch.timing import Clock, measure_load
from secateur.runtime.report import LayerReport, RuntimeReport

__all__ = ["compile_model"]

MAX_MODEL_TIME_RATIO = 1.0
"""All layers stay dense if the compiled model takes more than this fraction of the dense time."""

MIN_SPEEDUP_ALONE = 0.5
"""Layers with a smaller speed-up in isolation are not timed again inside the model."""


def compile_model(
    model: nn.Module,
    example_inputs: Any,
    *,
    int8: bool = False,
    cuda_graphs: bool = False,
    torch_compile: bool = False,
    clock: Clock = perf_counter,
) -> RuntimeReport:
    """Compile a model, see `secateur.runtime.compile`. `clock` returns the current time in seconds."""
    inner = unwrap_model(model)
    if training := [name for name, module in inner.named_modules() if module.training]:
        raise StateError(
            f"The runtime only supports inference, and {training[0] or 'the model'!r} is in training mode. Call "
            f"model.eval()."
        )
    device = next((weight.device for weight in inner.parameters()), torch.device("cpu"))
    if cuda_graphs and device.type != "cuda":
        raise ConfigError(
            f"cuda_graphs=True requires a model on a GPU, and this one is on {device}. Move the model to a GPU, or set "
            f"cuda_graphs=False."
        )
    example, options = parse_example_inputs(example_inputs), CompileOptions(int8, cuda_graphs, clock)
    call = partial(example.copy().call, inner)
    with torch.no_grad(), fix_seed(device):
        reports = inspect_layers(inner)
        check = OutputCheck(inner, example, device)
        # Before sparse layers need memory, because this copies the model. Models are not timed in graphs, so their
        # times could not be compared with the intended use.
        timer = BaselineTimer(model=inner, example=example, check=check, device=device, clock=clock)
        baselines = () if cuda_graphs else timer.measure(torch_compile=torch_compile)
        decisions = _decide_layers(inner, reports, call, check, options)
        times = time_model(inner, call, _select_replacements(decisions), device, clock=clock)
        seconds = times.sparse
        # Calls of the model are timed without CUDA graphs, so with graphs their times do not matter.
        if times.sparse > MAX_MODEL_TIME_RATIO * times.dense and not cuda_graphs:
            decisions, seconds = _keep_all_dense(decisions), times.dense
        replacements = _select_replacements(decisions)
        error = check.measure_replacement_error(replacements)
    replace_modules(inner, replacements)
    return RuntimeReport(
        layers=tuple(decision.report for decision in decisions.values()),
        threads=torch.get_num_threads(),
        device=str(device),
        dense_seconds=times.dense,
        seconds=seconds,
        cuda_graphs=cuda_graphs,
        error=error,
        baselines=baselines,
        load=measure_load(),
    )


def _decide_layers(
    model: nn.Module,
    reports: Mapping[str, LayerReport],
    call: Callable[[], object],
    check: OutputCheck,
    options: CompileOptions,
) -> dict[str, ReplacementDecision]:
    """Decide which layers to replace, so that the outputs of the model are correct with all replacements.

    Args:
        model: The model. It is left unchanged.
        reports: The reports on its layers so far.
        call: Calls the model with the example inputs.
        check: Compares the outputs of the model.
        options: The options of `secateur.runtime.compile`.
    """
    layers = {name: model.get_submodule(name) for name in reports}
    eligible = {name: layers[name] for name, report in reports.items() if not report.reason}
    reason = check.unsupported_reason
    if eligible and not reason:
        reason = check.get_unsupported_reason(max(map(get_tolerance, eligible.values())))
    if reason:
        return {
            name: ReplacementDecision(report if report.reason else replace(report, reason=reason), None)
            for name, report in reports.items()
        }
    calls, missing = _observe_calls(eligible, call)
    decisions = {
        name: benchmark_layer(
            _add_call(report, calls.get(name), missing.get(name, "")), layers[name], calls.get(name), options
        )
        for name, report in reports.items()
    }
    decisions = _keep_wrong_layers_dense(check, decisions)
    decisions |= _benchmark_within_model(model, call, decisions, calls, options.clock)
    faster = {name: reject_slow_replacement(decision) for name, decision in decisions.items()}
    return _keep_wrong_layers_dense(check, faster)


def _observe_calls(
    layers: Mapping[str, nn.Module], call: Callable[[], object]
) -> tuple[dict[str, ObservedCall], dict[str, str]]:
    """Record the last call of each layer that kernels can compute, and the reasons why other layers have none."""
    observed: dict[str, tuple[torch.Tensor, torch.device, int]] = {}
    reasons = dict.fromkeys(layers, "it is not called with the example inputs")

    def make_hook(name: str) -> Callable[..., None]:
        def observe(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
            inputs: Any = args[0] if args else kwargs.get("input")
            if problem := _describe_problem(inputs) or _describe_problem(outputs):
                reasons[name] = f"its inputs are {problem}"
            else:
                channels = outputs.shape[-3 if isinstance(layer, nn.Conv2d) else -1]
                like = torch.empty_strided(inputs.shape, inputs.stride(), dtype=inputs.dtype, device="meta")
                observed[name] = like, inputs.device, outputs.numel() // channels

        return observe

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(make_hook(name), with_kwargs=True).remove)
        try:
            call()
        except CalibrationError as error:
            problem = (
                f"the model fails while calls of its layers are recorded: {summarize_error(error.__cause__ or error)}"
            )
            return {}, dict.fromkeys(layers, problem)
    calls = {
        name: ObservedCall(torch.randn_like(like, device=device), rows)
        for name, (like, device, rows) in observed.items()
    }
    return calls, reasons


def _describe_problem(value: Any) -> str:
    """Say why kernels cannot read a value, or return an empty string if they can."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if not is_strided(value):
        return "nested" if value.is_nested else f"stored as {'oneDNN tensors' if value.is_mkldnn else value.layout}"
    if not value.is_floating_point():
        return str(value.dtype)
    return "" if value.numel() else "empty"


def _add_call(report: LayerReport, call: ObservedCall | None, missing_reason: str) -> LayerReport:
    if call is not None:
        return replace(report, rows=call.rows)
    return report if report.reason else replace(report, reason=missing_reason)


def _keep_all_dense(decisions: Mapping[str, ReplacementDecision]) -> dict[str, ReplacementDecision]:
    return {
        name: decision
        if decision.replacement is None
        else keep_dense(decision.report, f"{decision.report.chosen} is faster, but the whole model is not")
        for name, decision in decisions.items()
    }


def _keep_wrong_layers_dense(
    check: OutputCheck, decisions: dict[str, ReplacementDecision]
) -> dict[str, ReplacementDecision]:
    """Keep layers dense if their replacements would change the outputs of the model."""
    replacements = {
        name: Replacement(layer, report.error, get_tolerance(layer, report.chosen))
        for name, (report, layer) in decisions.items()
        if layer is not None
    }
    wrong = {
        name: keep_dense(decisions[name].report, f"{decisions[name].report.chosen}: {problem}")
        for name, problem in check.find_wrong_layers(replacements).items()
    }
    return decisions | wrong


def _benchmark_within_model(
    model: nn.Module,
    call: Callable[[], object],
    decisions: Mapping[str, ReplacementDecision],
    calls: Mapping[str, ObservedCall],
    clock: Clock,
) -> dict[str, ReplacementDecision]:
    """Time promising replacements on the CPU again, inside calls of the whole model."""
    promising = {
        name: layer
        for name, (report, layer) in decisions.items()
        if layer is not None and calls[name].inputs.is_cpu and (report.speedup or 0) >= MIN_SPEEDUP_ALONE
    }
    times = time_layers(model, call, promising, clock=clock)
    return {
        name: ReplacementDecision(
            replace(decisions[name].report, dense_seconds=pair.dense, sparse_seconds=pair.sparse), promising[name]
        )
        for name, pair in times.items()
    }


def _select_replacements(decisions: Mapping[str, ReplacementDecision]) -> dict[str, nn.Module]:
    return {name: layer for name, (_, layer) in decisions.items() if layer is not None}
