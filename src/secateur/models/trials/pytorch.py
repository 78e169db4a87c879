"""Prepare torch models for timing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._calls.pytorch.random_inputs import make_random_inputs
from secateur._packages import require_packages
from secateur.errors import CalibrationError
from secateur.models.pytorch.batches import read_array_batches
from secateur.models.trials import CompiledTrial, Trial
from secateur.oneshot.pytorch.calibration.batches import calibration_mode, explain_model_errors, move_to
from secateur.oneshot.pytorch.storage.weight_storage import find_device
from secateur.runtime import compile as compile_model

__all__ = ["make_trial"]


def make_trial(
    model: nn.Module,
    file: Path | None,
    batch: int,
    length: int,
    device: str | None = None,
    dense: nn.Module | None = None,
) -> Trial:
    """See `secateur.models.trials.make_trial`."""
    inputs = (
        _make_random_inputs(model, batch, length) if file is None else _select_rows(read_array_batches(file)[0], batch)
    )
    if device is not None:
        model, inputs = model.to(find_device(device)), move_to(inputs, find_device(device))
    dense = _replace_zeros(model) if dense is None else dense.to(next(iter(_list_tensors(inputs))).device)
    shapes = " and ".join("×".join(map(str, tensor.shape)) for tensor in _list_tensors(inputs))
    on_gpu = [tensor for tensor in _list_tensors(inputs) if tensor.is_cuda]
    _call(model, inputs)
    return Trial(
        inputs=shapes + "".join(f" on {torch.cuda.get_device_name(tensor.device)}" for tensor in on_gpu[:1]),
        dense=partial(_call, dense, inputs),
        pruned=partial(_call, model, inputs),
        compile=partial(_compile, model, inputs),
    )


def _compile(model: nn.Module, inputs: Any) -> CompiledTrial:
    require_packages("llvmlite", extra="runtime")
    compiled, report = compile_model(copy.deepcopy(model).eval(), inputs, torch_compile=True)
    return CompiledTrial(call=partial(_call, compiled, inputs), report=report)


def _call(model: nn.Module, inputs: Any) -> None:
    with calibration_mode(model), explain_model_errors("the inputs"):
        model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    if any(tensor.is_cuda for tensor in _list_tensors(inputs)):
        torch.cuda.synchronize()


def _make_random_inputs(model: nn.Module, batch: int, length: int) -> dict[str, torch.Tensor]:
    inputs = make_random_inputs(model, batch, length)
    if inputs is None:
        raise CalibrationError("a model that takes neither text nor images needs a file of inputs.")
    return inputs


def _select_rows(inputs: Any, count: int) -> Any:
    if isinstance(inputs, Mapping):
        return {name: tensor[:count] for name, tensor in inputs.items()}
    return tuple(tensor[:count] for tensor in inputs)


def _list_tensors(inputs: Any) -> list[torch.Tensor]:
    return list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def _replace_zeros(model: nn.Module) -> nn.Module:
    """Copy a model with small random numbers in place of its zeros."""
    dense = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in dense.parameters():
            if weight.ndim > 1 and weight.is_floating_point():
                noise = 0.01 * torch.randn(weight.shape, generator=generator)
                weight.copy_(torch.where(weight == 0, noise.to(weight), weight))
    return dense
