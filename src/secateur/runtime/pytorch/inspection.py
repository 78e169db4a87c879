"""Inspect the layers of a model: their shape, their zeros, and whether they can be replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

from secateur.errors import LayerError
from secateur.frameworks.pytorch import get_type_names
from secateur.runtime.pytorch.candidates import MIN_SPARSITY
from secateur.runtime.pytorch.layers.base import is_strided
from secateur.runtime.pytorch.recognized_weight import RecognizedWeight
from secateur.runtime.report import LayerReport

__all__ = ["inspect_layers"]

UNINITIALIZED = (nn.UninitializedParameter, nn.UninitializedBuffer)

WEIGHT_NAMES = ("weight", "in_proj_weight", "q_proj_weight")
"""Attributes that may contain the weight of a layer."""

TRANSFORMERS = "transformers.pytorch_utils"
"""The module that defines transformers' `Conv1D`, but no subclasses of it."""

HOOK_ATTRIBUTES = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks"))


def inspect_layers(model: nn.Module) -> dict[str, LayerReport]:
    """Report the shape and zeros of each layer in the order of the model, and the reason if it must stay dense."""
    nested = set(_find_modules_in_nested_encoders(model))
    owner_counts = Counter(
        key
        for module in model.modules()
        for key in {_identify(weight) for weight in module._parameters.values() if weight is not None}
    )
    return {
        name: _report_layer(name, layer, _get_unsupported_reason(name, layer, owner_counts, is_nested=layer in nested))
        for name, layer in model.named_modules()
        if get_type_names(layer)
    }


def _get_unsupported_reason(name: str, layer: nn.Module, owner_counts: Counter[object], *, is_nested: bool) -> str:
    """Return why a layer cannot be replaced, regardless of its zeros, or an empty string if it can."""
    weight = layer._parameters.get("weight")
    reason = _get_layer_reason(layer, 1 if weight is None else owner_counts[_identify(weight)])
    if reason:
        return reason
    if not name:
        return "it is the model itself; to replace it, wrap it in another module, such as nn.Sequential"
    if is_nested:
        return "nn.TransformerEncoder may pass nested tensors; build it with enable_nested_tensor=False"
    return ""


def _get_layer_reason(layer: nn.Module, owner_count: int) -> str:
    """Return the reason that depends only on the layer and on `owner_count`, the number of modules with its weight."""
    if type(layer) not in (nn.Linear, nn.Conv2d) and type(layer).__module__ != TRANSFORMERS:
        return f"{type(layer).__name__} is not supported"
    if "forward" in layer.__dict__:
        return "its forward method is overridden"
    if layer._parameters.keys() - {"weight", "bias"} or layer._buffers or layer._modules:
        return "it has parameters, buffers or modules besides its weight and bias"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed and not a parameter"
    if owner_count > 1:
        return "its weight is shared with another layer"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "grouped convolutions are not supported, because their products are small"
    if any(layer.__dict__.get(name) for name in HOOK_ATTRIBUTES):
        return "it has hooks, which would be lost"
    return _get_weight_reason(weight)


def _get_weight_reason(weight: torch.Tensor) -> str:
    """Return the reason that depends only on the weight."""
    if type(weight) not in (nn.Parameter, torch.Tensor):
        return f"its weight is a {type(weight).__name__}"
    if weight.layout is not torch.strided:
        return f"its weight is stored as {weight.layout}"
    if weight.is_meta:
        return "its weight is on the meta device and has no values"
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is {weight.dtype}"
    return ""


def _find_modules_in_nested_encoders(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of encoders that may convert padded batches to nested tensors and then bypass `forward`."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            yield from module.modules()


def _identify(weight: torch.Tensor) -> object:
    """Return a key that is equal for parameters with the same memory."""
    if type(weight) is nn.Parameter and is_strided(weight) and not weight.is_meta and weight.numel():
        return weight.device, weight.data_ptr()
    return id(weight)


def _report_layer(name: str, layer: nn.Module, reason: str) -> LayerReport:
    weight = _get_weight(layer)
    if weight is None:
        return LayerReport(name=name, shape=(), pattern=None, sparsity=0.0, reason=reason)
    sparsity = _measure_sparsity(weight)
    return LayerReport(
        name=name,
        shape=tuple(weight.shape),
        pattern=_recognize_pattern(layer) if sparsity >= MIN_SPARSITY else None,
        sparsity=sparsity,
        dense_bytes=weight.nbytes,
        bytes=weight.nbytes,
        reason=reason,
    )


def _get_weight(layer: nn.Module) -> torch.Tensor | None:
    """Return the weight of a layer, a parameter or computed, or ``None`` if it is not initialized."""
    for name in WEIGHT_NAMES:
        weight = getattr(layer, name, None)
        if isinstance(weight, torch.Tensor) and not isinstance(weight, UNINITIALIZED):
            return weight.detach()
    return None


def _recognize_pattern(layer: nn.Module) -> str | None:
    """Return the pattern of a layer's zeros, or ``None`` if there is none or if the weight has unusual axes."""
    if layer._parameters.get("weight") is None:
        return None
    try:
        return RecognizedWeight.from_layer(layer).pattern
    except LayerError:
        return None


def _measure_sparsity(weight: torch.Tensor) -> float:
    if weight.is_meta or not weight.numel():
        return 0.0
    return 1 - int(weight.count_nonzero()) / weight.numel()
