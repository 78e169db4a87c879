"""All layers of a model, and what is known of them before anything is tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

from secateur.errors import LayerError
from secateur.frameworks.pytorch import get_type_names
from secateur.runtime.pytorch.operator import is_strided
from secateur.runtime.pytorch.ways import LEAST_SPARSITY, refusal, zeroed
from secateur.runtime.report import LayerRow

__all__ = ["survey"]

UNINITIALIZED = (nn.UninitializedParameter, nn.UninitializedBuffer)

WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight")
"""Where the types of layers that are listed keep their weight."""


def survey(model: nn.Module) -> dict[str, LayerRow]:
    """Name → what is known of each layer, in the model's order; with a reason where it must stay dense."""
    nested = set(_inside_nested_encoders(model))
    owners = Counter(
        key
        for module in model.modules()
        for key in {_identity(one) for one in module._parameters.values() if one is not None}
    )
    rows = {}
    for name, layer in model.named_modules():
        if get_type_names(layer):
            rows[name] = _row(name, layer, _refusal(name, layer, owners, is_nested=layer in nested))
    return rows


def _refusal(name: str, layer: nn.Module, owners: Counter[object], *, is_nested: bool) -> str:
    weight = layer._parameters.get("weight")
    reason = refusal(layer, 1 if weight is None else owners[_identity(weight)])
    if reason:
        return reason
    if not name:
        return "it is the whole model, and can only be replaced inside one, such as nn.Sequential"
    if is_nested:
        return "nn.TransformerEncoder may pass nested tensors; build it with enable_nested_tensor=False"
    return ""


def _inside_nested_encoders(model: nn.Module) -> Iterator[nn.Module]:
    """Modules in encoders that turn padded batches into nested tensors, which skip or break replaced layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            yield from module.modules()


def _identity(weight: torch.Tensor) -> object:
    """Equal for parameters with the same memory."""
    if type(weight) is nn.Parameter and is_strided(weight) and not weight.is_meta and weight.numel():
        return weight.device, weight.data_ptr()
    return id(weight)


def _row(name: str, layer: nn.Module, reason: str) -> LayerRow:
    weight = _weight(layer)
    if weight is None:
        return LayerRow(name=name, shape=(), pattern=None, sparsity=0.0, reason=reason)
    sparsity = _share_of_zeros(weight)
    return LayerRow(
        name=name,
        shape=tuple(weight.shape),
        pattern=_pattern(layer) if sparsity >= LEAST_SPARSITY else None,
        sparsity=sparsity,
        dense_bytes=weight.nbytes,
        bytes=weight.nbytes,
        reason=reason,
    )


def _weight(layer: nn.Module) -> torch.Tensor | None:
    """A layer's weight, be it a parameter or computed; ``None``: it has no values yet."""
    for name in WEIGHTS:
        weight = getattr(layer, name, None)
        if isinstance(weight, torch.Tensor) and not isinstance(weight, UNINITIALIZED):
            return weight.detach()
    return None


def _pattern(layer: nn.Module) -> str | None:
    """The pattern of a layer's zeros; ``None``: none, or its weight is not stored as patterns see it."""
    if layer._parameters.get("weight") is None:
        return None
    try:
        return zeroed(layer).pattern
    except LayerError:
        return None


def _share_of_zeros(weight: torch.Tensor) -> float:
    if weight.is_meta or not weight.numel():
        return 0.0
    return 1 - int(weight.count_nonzero()) / weight.numel()
