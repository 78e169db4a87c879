"""Refuse models that cannot be slimmed, before anything changes."""

from __future__ import annotations

import torch
from torch import nn

from secateur._wording import format_list
from secateur.errors import StateError, UnsupportedModelError
from secateur.frameworks.pytorch import find_adapters, is_plain_tensor
from secateur.masking.active import list_active

__all__ = ["refuse_model", "refuse_wrappers"]

QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
RUNTIME = "secateur.runtime"


def refuse_wrappers(model: nn.Module) -> None:
    """Refuse wrappers that keep the current parameters.

    Raises:
        UnsupportedModelError: The model is wrapped for distributed training.
    """
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise UnsupportedModelError(
            "DistributedDataParallel keeps the current parameters. Slim the model inside, and wrap it afterwards."
        )


def refuse_model(model: nn.Module) -> None:
    """Refuse a model that cannot be slimmed.

    Raises:
        UnsupportedModelError: See `secateur.slim`.
        StateError: A pruning run is active on the model.
    """
    _refuse_modules(model)
    if adapters := find_adapters(model):
        raise UnsupportedModelError(
            f"The model must not have adapters such as LoRA, found "
            f"{format_list(map(repr, sorted(adapters)), limit=2)}. Merge them first, with merge_and_unload()."
        )
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors.items():
        _refuse_tensor(name, tensor)
    weights = {id(weight) for weight in model.parameters()}
    for pruner in list_active():
        if any(id(weight) in weights for weight in pruner.model.parameters()):
            raise StateError(
                "A pruning run of secateur.prepare is active on the model, and its masks have the current shapes. Call "
                "finalize() first."
            )


def _refuse_modules(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError("A scripted model has fixed shapes. Slim the model before torch.jit.script.")
    for name, module in model.named_modules():
        homes = [base.__module__ for base in type(module).__mro__]
        if any(home == RUNTIME or home.startswith(f"{RUNTIME}.") for home in homes):
            raise UnsupportedModelError(
                f"{name!r} was compiled by secateur.runtime. Slim the model before compiling it."
            )
        if any(home.startswith(QUANTIZED) for home in homes):
            raise UnsupportedModelError(f"{name!r} is quantized. Slim the model before quantizing it.")


def _refuse_tensor(name: str, tensor: torch.Tensor) -> None:
    is_parameter = isinstance(tensor, nn.Parameter)
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise UnsupportedModelError(f"{name!r} has no shape yet. Run one batch through the model first.")
    if tensor.is_meta:
        raise UnsupportedModelError(f"{name!r} is on the meta device and has no values. Load the weights first.")
    if tensor.is_inference():
        raise UnsupportedModelError(
            f"{name!r} was created in inference mode, and cannot change. Build the model outside of "
            f"torch.inference_mode()."
        )
    is_plain = is_plain_tensor(tensor) or type(tensor) is nn.Buffer
    if not is_plain or tensor.layout != torch.strided or tensor.is_quantized:
        kind = type(tensor).__name__
        raise UnsupportedModelError(
            f"{name!r} must be a plain dense tensor, found {kind} of type {tensor.dtype}. Slim the model before it is "
            f"quantized or sharded."
        )
    if is_parameter and not (tensor.is_floating_point() or tensor.is_complex()):
        raise UnsupportedModelError(
            f"{name!r} is quantized: it has type {tensor.dtype}. Slim the model before quantizing it."
        )
    if is_parameter and tensor.dtype == torch.float16 and tensor.device.type == "cpu":
        raise UnsupportedModelError(
            f"{name!r} is float16 on the CPU, where outputs cannot be compared reliably. Convert the model with "
            f"float(), and back after slimming."
        )
