"""Find the layers of a torch model, and its output layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.config import PruningConfig
from secateur.errors import LayerError
from secateur.frameworks.pytorch import (
    StackedWeight,
    find_weight_layers,
    get_matrices,
    get_parameter,
    get_type_names,
    is_plain_tensor,
    list_layers,
    read_parameter,
    unwrap_model,
)
from secateur.planning.layers import Candidate
from secateur.planning.output_layer import find_output_names
from secateur.planning.planner import Plan, make_plan

__all__ = ["find_candidates", "plan"]

FROZEN = "frozen (requires_grad=False)"


def plan(model: nn.Module, config: PruningConfig | Mapping[str, Any], *, prune_frozen: bool = False) -> Plan:
    """See `secateur.plan`; with `prune_frozen`, frozen layers may be pruned too."""
    return make_plan(
        config,
        find_candidates(model, prune_frozen=prune_frozen),
        list(list_layers(model)),
        "pytorch",
    )


def find_candidates(model: nn.Module, *, prune_frozen: bool = False) -> list[Candidate]:
    """Find every layer that owns a parameter with at least two axes, in the order of the model.

    Frozen layers stay dense, unless `prune_frozen` is set.
    """
    layers = find_weight_layers(model)
    outputs = _find_output_layers(unwrap_model(model), layers)
    candidates = [_describe_layer(name, layer, is_output=id(layer) in outputs) for name, layer in layers.items()]
    return [replace(layer, reason=None) if prune_frozen and layer.reason == FROZEN else layer for layer in candidates]


def _describe_layer(name: str, layer: nn.Module | StackedWeight, *, is_output: bool) -> Candidate:
    weight: nn.Parameter | None
    reason: str | None = None
    module, owner = (layer.module, name.rpartition(".")[0]) if isinstance(layer, StackedWeight) else (layer, None)
    try:
        weight = get_parameter(layer)
        if not weight.requires_grad:
            reason = FROZEN
    except LayerError as error:
        weight = read_parameter(layer) if owner is not None else next(iter(get_matrices(module)), None)
        reason = str(error)
    return Candidate(
        name=name,
        module=layer,
        types=get_type_names(layer) or (type(layer).__name__,),
        shape=() if weight is None else tuple(weight.shape),
        weight_id=id(module) if weight is None else id(weight),
        is_output=is_output,
        is_refused=bool(get_type_names(layer)) and _has_tensor_subclass(layer),
        reason=reason,
        owner=owner,
    )


def _has_tensor_subclass(layer: nn.Module | StackedWeight) -> bool:
    weight = read_parameter(layer)
    return not (weight is None or isinstance(weight, nn.UninitializedParameter) or is_plain_tensor(weight))


def _find_output_layers(model: nn.Module, layers: Mapping[str, Any]) -> set[int]:
    """Return the identities of language-model heads and classifiers."""
    declared = getattr(model, "get_output_embeddings", lambda: None)()
    if declared is not None:
        return {id(declared)}
    names = [name for name, module in layers.items() if get_type_names(module)]
    outputs = find_output_names(names, lambda part: isinstance(model.get_submodule(part), nn.ModuleList))
    return {id(layers[name]) for name in outputs}
