"""Find the layers of a torch model, and its output layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.config import ConfigLike, PruningConfig, make_config
from secateur.errors import LayerError
from secateur.frameworks.pytorch import (
    OwnedWeight,
    explain_type,
    find_adapters,
    find_owned_weights,
    find_weight_layers,
    get_class_name,
    get_matrices,
    get_parameter,
    get_parameter_name,
    get_type_names,
    get_weight_name,
    list_layers,
    read_parameter,
    unwrap_model,
)
from secateur.graph.pytorch import FINDERS
from secateur.planning.groups import GroupFinder
from secateur.planning.layer_selection import has_lock, list_couplings
from secateur.planning.layers import Candidate
from secateur.planning.output_layer import find_output_names
from secateur.planning.planner import Plan, make_plan

__all__ = ["find_candidates", "needs_example_inputs", "plan"]

FROZEN = "frozen (requires_grad=False)"

ROUTER_NAMES = frozenset({"gate", "router"})
"""Usual names of modules that contain a router."""


def plan(
    model: nn.Module,
    config: ConfigLike,
    *,
    example_inputs: Any = None,
    prune_frozen: bool = False,
) -> Plan:
    """See `secateur.plan`.

    Args:
        model: See `secateur.plan`.
        config: See `secateur.plan`.
        example_inputs: See `secateur.plan`.
        prune_frozen: Whether frozen layers may be pruned too.
    """
    config = make_config(config)
    candidates = find_candidates(model, prune_frozen=prune_frozen)
    if has_lock(config):
        candidates = _add_owned_weights(model, candidates, prune_frozen=prune_frozen)
    supported = {get_parameter_name(row.name, row.module) for row in candidates if row.is_supported}
    groups = GroupFinder(model, example_inputs, FINDERS, supported)
    made = make_plan(config, candidates, list(list_layers(model)), "pytorch", groups.find)
    return replace(made, barriers=groups.barriers)


def needs_example_inputs(config: PruningConfig) -> bool:
    """Whether a configuration, or a rule in it, has a pattern whose groups can only be found with example inputs."""
    return bool(list_couplings(config) - FINDERS.keys())


def find_candidates(model: nn.Module, *, prune_frozen: bool = False) -> list[Candidate]:
    """Find every layer that owns a parameter with at least two axes, in the order of the model.

    Frozen layers stay dense, unless `prune_frozen` is set.
    """
    layers, adapters = find_weight_layers(model), find_adapters(model)
    outputs = _find_output_layers(unwrap_model(model), {name: layers[name] for name in layers if name not in adapters})
    candidates = [_describe_layer(name, layer, is_output=id(layer) in outputs) for name, layer in layers.items()]
    if prune_frozen:  # without training, so in one process
        candidates = [_refuse_shards(candidate) for candidate in candidates]
    candidates = _mark_routers(candidates, list_layers(model))
    return [_leave_adapter(_treat_frozen(row, prune_frozen=prune_frozen), adapters) for row in candidates]


def _refuse_shards(candidate: Candidate) -> Candidate:
    """Give a layer whose weight is sharded a reason to stay dense."""
    weight = read_parameter(candidate.module)
    if not candidate.is_supported or weight is None:
        return candidate
    reason = explain_type(weight, accepts_shards=False)
    return candidate if reason is None else replace(candidate, reason=reason, is_refused=True)


def _mark_routers(candidates: Sequence[Candidate], modules: Mapping[str, nn.Module]) -> list[Candidate]:
    """Mark the layers beside ``experts`` that choose among them, with one output each, or scale a shared expert."""
    counts = {
        name: count
        for name, module in modules.items()
        if isinstance(experts := getattr(module, "experts", None), nn.Module) and (count := _count_experts(experts))
    }

    def is_router(candidate: Candidate) -> bool:
        parent = candidate.name.rpartition(".")[0]
        if parent not in counts:
            parent, _, key = parent.rpartition(".")
            if key not in ROUTER_NAMES or parent not in counts:
                return False
        return "Linear" in candidate.types and candidate.shape[:1] in {(1,), (counts[parent],)}

    return [replace(candidate, is_router=True) if is_router(candidate) else candidate for candidate in candidates]


def _count_experts(experts: nn.Module) -> int:
    """Count the experts in a list, or in the weights of a module that stacks them."""
    if isinstance(experts, nn.ModuleList | nn.ModuleDict):
        return len(experts)
    return max((len(weight) for weight in get_matrices(experts) if weight.ndim == 3), default=0)


def _leave_adapter(candidate: Candidate, adapters: Collection[str]) -> Candidate:
    """Leave the parameters of an adapter dense, even if they are frozen or sharded."""
    if (candidate.owner or candidate.name) not in adapters:
        return candidate
    return replace(candidate, is_refused=False, is_frozen=False, reason="adapters are not pruned")


def _treat_frozen(candidate: Candidate, *, prune_frozen: bool) -> Candidate:
    """Accept a frozen layer, whose weight does not change."""
    if prune_frozen:
        return replace(candidate, reason=None) if candidate.reason == FROZEN else candidate
    weight = read_parameter(candidate.module)
    is_trained = weight is not None and weight.requires_grad
    return replace(candidate, is_refused=candidate.is_refused and is_trained, is_frozen=candidate.reason == FROZEN)


def _add_owned_weights(model: nn.Module, candidates: Sequence[Candidate], *, prune_frozen: bool) -> list[Candidate]:
    """Add the parameters that only a pattern lock supports, in place of modules that patterns do not support."""
    layers: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        layers.setdefault(candidate.name if candidate.owner is None else candidate.owner, []).append(candidate)
    found: list[Candidate] = []
    adapters = find_adapters(model)
    for name, module in list_layers(model).items():
        owned = find_owned_weights(module)
        if (get_type_names(module) and get_weight_name(module) not in owned) or not owned:
            found += layers.get(name, [])
        else:
            found += [candidate for candidate in layers.get(name, []) if candidate.owner is not None]
        for key, weight in owned.items():
            row = replace(_describe_layer(f"{name}.{key}".lstrip("."), weight, is_output=False), only_locks=True)
            found.append(_leave_adapter(_treat_frozen(row, prune_frozen=prune_frozen), adapters))
    return found


def _describe_layer(name: str, layer: nn.Module | OwnedWeight, *, is_output: bool) -> Candidate:
    weight: nn.Parameter | None
    reason: str | None = None
    module, owner = (layer.module, name.rpartition(".")[0]) if isinstance(layer, OwnedWeight) else (layer, None)
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
        types=get_type_names(layer) or (get_class_name(layer),),
        shape=() if weight is None else tuple(weight.shape),
        weight_id=id(module) if weight is None else id(weight),
        is_output=is_output,
        is_refused=bool(get_type_names(layer)) and _has_tensor_subclass(layer),
        reason=reason,
        owner=owner,
    )


def _has_tensor_subclass(layer: nn.Module | OwnedWeight) -> bool:
    weight = read_parameter(layer)
    return not (weight is None or isinstance(weight, nn.UninitializedParameter)) and explain_type(weight) is not None


def _find_output_layers(model: nn.Module, layers: Mapping[str, Any]) -> set[int]:
    """Return the identities of language-model heads and classifiers."""
    declared = getattr(model, "get_output_embeddings", lambda: None)()
    if declared is not None:
        return {id(getattr(declared, "base_layer", declared))}
    names = [name for name, module in layers.items() if get_type_names(module)]
    outputs = find_output_names(names, lambda part: isinstance(model.get_submodule(part), nn.ModuleList))
    return {id(layers[name]) for name in outputs}
