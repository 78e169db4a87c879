"""Inspect the layers of a model: their shape, their zeros, and whether they can be replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from secateur._wording import format_list
from secateur.errors import LayerError
from secateur.frameworks.pytorch import get_type_names, is_plain_tensor
from secateur.runtime.pytorch.candidates import MIN_SPARSITY
from secateur.runtime.pytorch.effective_weights import UNINITIALIZED, find_weights
from secateur.runtime.pytorch.layers.base import SparseLayer, is_strided
from secateur.runtime.pytorch.recognized_weight import RecognizedWeight
from secateur.runtime.report import LayerReport

__all__ = ["inspect_layers"]

TRANSFORMERS = "transformers.pytorch_utils"
"""The module that defines transformers' `Conv1D`, but no subclasses of it."""

HOOK_ATTRIBUTES = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks"))


def inspect_layers(model: nn.Module) -> dict[str, LayerReport]:
    """Report the shape and zeros of each layer in the order of the model, and the reason if it must stay dense.

    All modules that have a weight with at least two axes are listed, even if their type is never replaced.

    Raises:
        LayerError: The model has weights that are tensor subclasses.
    """
    _check_tensor_types(model)
    nested = set(_find_modules_in_nested_encoders(model))
    owner_counts = Counter(
        key
        for module in model.modules()
        for key in {_identify(weight) for weight in module._parameters.values() if weight is not None}
    )
    listed: set[object] = set()
    reports: dict[str, LayerReport] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            reports[name] = _report_replaced_layer(name, layer)
        elif get_type_names(layer) or find_weights(layer):
            reason = _get_unsupported_reason(name, layer, owner_counts, is_nested=layer in nested)
            reports[name] = _report_layer(name, layer, reason, listed)
    return reports


def _check_tensor_types(model: nn.Module) -> None:
    """Raise `LayerError` for tensor subclasses. Even counting their zeros could communicate with other processes."""
    foreign = [
        f"{name!r} is a {type(weight).__name__}"
        for name, weight in model.named_parameters()
        if not (isinstance(weight, UNINITIALIZED) or is_plain_tensor(weight))
    ]
    if foreign:
        raise LayerError(
            f"The runtime cannot compile weights that are tensor subclasses: {format_list(foreign, limit=4)}. Compile "
            f"the model before it is sharded or quantized, with plain tensors as weights."
        )


def _get_unsupported_reason(name: str, layer: nn.Module, owner_counts: Counter[object], *, is_nested: bool) -> str:
    """Return why a layer cannot be replaced, regardless of its zeros, or an empty string if it can."""
    if type(layer) not in (nn.Linear, nn.Conv2d) and type(layer).__module__ != TRANSFORMERS:
        return f"{type(layer).__name__} is not supported"
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
    if is_plain_tensor(weight) and is_strided(weight) and not weight.is_meta and weight.numel():
        return weight.device, weight.data_ptr()
    return id(weight)


def _report_layer(name: str, layer: nn.Module, reason: str, listed: set[object]) -> LayerReport:
    """Report a layer. Weights in `listed` belong to other layers too, and their bytes have been counted there."""
    weights = find_weights(layer)
    if not weights:
        return LayerReport(name=name, shape=(), pattern=None, sparsity=0.0, reason=reason)
    sparsity = _measure_sparsity(weights)
    new = {key: weight for weight in weights if (key := _identify(weight)) not in listed}
    listed.update(new)
    size = sum(weight.numel() * weight.element_size() for weight in new.values())
    return LayerReport(
        name=name,
        shape=tuple(weights[0].shape),
        pattern=_recognize_pattern(layer) if sparsity >= MIN_SPARSITY else None,
        sparsity=sparsity,
        dense_bytes=size,
        bytes=size,
        reason=reason,
    )


def _report_replaced_layer(name: str, layer: SparseLayer) -> LayerReport:
    weight = layer.unpack_weight()
    return LayerReport(
        name=name,
        shape=layer.dense_shape,
        pattern=None,
        sparsity=_measure_sparsity([weight]),
        chosen=type(layer).__name__,
        dense_bytes=weight.nbytes,
        bytes=layer.nbytes,
        reason="an earlier call replaced it",
    )


def _recognize_pattern(layer: nn.Module) -> str | None:
    """Return the pattern of a layer's zeros, or ``None`` if there is none or if the weight has unusual axes."""
    if not get_type_names(layer) or layer._parameters.get("weight") is None:
        return None
    try:
        return RecognizedWeight.from_layer(layer).pattern
    except LayerError:
        return None


def _measure_sparsity(weights: Iterable[torch.Tensor]) -> float:
    """Measure the share of zeros in all weights together, in [0, 1]."""
    readable = [weight.detach() for weight in weights if not weight.is_meta and weight.numel()]
    nonzero = sum(int((weight if is_strided(weight) else weight.to_dense()).count_nonzero()) for weight in readable)
    return 1 - nonzero / max(1, sum(weight.numel() for weight in readable)) if readable else 0.0
