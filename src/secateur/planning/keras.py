"""Find the layers of a Keras model, and its output layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import keras

from secateur._array import count_true
from secateur.config import ConfigLike, make_config
from secateur.errors import LayerError, UnsupportedModelError
from secateur.frameworks.keras import (
    DetachedKernel,
    find_owned_kernels,
    find_weight_layers,
    get_kernel,
    get_matrices,
    get_type_names,
    list_inner_layers,
    list_layers,
    read_array,
)
from secateur.planning.groups import GroupFinder
from secateur.planning.layer_selection import has_lock
from secateur.planning.layers import Candidate
from secateur.planning.planner import Plan, make_plan

__all__ = ["find_candidates", "plan"]

FROZEN = "frozen (trainable=False)"

LORA = (
    "LoRA adds to this kernel, so its zeros are lost when it is merged. Lock the zeros while all weights train, or "
    "prune again after merging"
)


def plan(model: keras.Model, config: ConfigLike, *, example_inputs: Any = None, prune_frozen: bool = False) -> Plan:
    """See `secateur.plan`; with `prune_frozen`, frozen layers may be pruned too.

    Raises:
        UnsupportedModelError: The model is not built, so its kernels have no shape yet.
    """
    if not model.built:
        raise UnsupportedModelError(
            f"The model {model.name!r} must be built, so that its kernels have shapes. "
            f"Call model.build(input_shape), or call the model with one batch, first."
        )
    config = make_config(config)
    candidates = find_candidates(model, prune_frozen=prune_frozen)
    if has_lock(config):
        candidates = _add_owned_kernels(model, candidates)
    groups = GroupFinder(model, example_inputs, None)
    made = make_plan(config, candidates, list(list_layers(model)), "keras", groups.find)
    return replace(made, barriers=groups.barriers)


def _add_owned_kernels(model: keras.Model, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Add the variables that only a pattern lock supports, in place of layers that patterns do not support."""
    by_name = {candidate.name: candidate for candidate in candidates}
    found: list[Candidate] = []
    for path, layer in list_layers(model).items():
        owned = find_owned_kernels(layer)
        if path in by_name and (by_name[path].reason in (None, FROZEN) or not owned):
            found.append(by_name[path])
        found += [_describe_kernel(path, name, layer, kernel) for name, kernel in owned.items()]
    return found


def _describe_kernel(path: str, name: str, layer: keras.Layer, kernel: DetachedKernel) -> Candidate:
    variable, reason = kernel.variable, None
    loses_zeros = getattr(layer, "lora_enabled", False) and not variable.trainable and _has_zeros(variable)
    if loses_zeros:
        reason = LORA
    elif not keras.backend.is_float_dtype(variable.dtype):
        reason = f"its dtype is {variable.dtype}; zeros of floating-point variables are kept"
    elif not variable.trainable:
        reason = FROZEN
    return Candidate(
        name=f"{path}/{name}",
        module=kernel,
        types=(type(layer).__name__,),
        shape=tuple(variable.shape),
        weight_id=id(variable),
        is_refused=loses_zeros,
        reason=reason,
        owner=path,
        only_locks=True,
    )


def _has_zeros(variable: keras.Variable) -> bool:
    values = read_array(variable)
    return 0 < count_true(values) < values.size


def find_candidates(model: keras.Model, *, prune_frozen: bool = False) -> list[Candidate]:
    """Find every layer that owns a variable with at least two axes, in the order of the model.

    Frozen layers stay dense, unless `prune_frozen` is set.
    """
    layers = find_weight_layers(model)
    outputs = _find_output_layers(model, layers.values())
    candidates = [_describe_layer(name, layer, is_output=id(layer) in outputs) for name, layer in layers.items()]
    return [replace(layer, reason=None) if prune_frozen and layer.reason == FROZEN else layer for layer in candidates]


def _describe_layer(name: str, layer: keras.Layer, *, is_output: bool) -> Candidate:
    weight: keras.Variable | None
    reason: str | None = None
    try:
        weight = get_kernel(layer)
        if not weight.trainable:
            reason = FROZEN
    except LayerError as error:
        weight = next(iter(get_matrices(layer)), None)
        reason = str(error)
    return Candidate(
        name=name,
        module=layer,
        types=get_type_names(layer) or (type(layer).__name__,),
        shape=() if weight is None else tuple(weight.shape),
        weight_id=id(layer) if weight is None else id(weight),
        is_output=is_output,
        reason=reason,
    )


def _find_output_layers(model: keras.Model, layers: Collection[keras.Layer]) -> set[int]:
    """Return the identities of the last layers with a kernel before the model's outputs."""
    supported = [layer for layer in layers if get_type_names(layer)]
    ends = _find_graph_ends(model, {id(layer) for layer in supported})
    if ends is not None:
        return ends
    # A subclassed model has no graph. Its last layer is the output, unless it is inside another layer, such as a block.
    top_level = {id(layer) for layer in list_inner_layers(model)}
    return {id(layer) for layer in supported[-1:] if id(layer) in top_level}


def _find_graph_ends(model: keras.Model, supported: Collection[int]) -> set[int] | None:
    """Return the identity of the last supported layer before each output, or ``None`` if the model has no graph."""
    functional = getattr(model, "_functional", model)
    outputs = getattr(functional, "outputs", None)
    if outputs is None or not hasattr(functional, "operations"):
        return None
    return {end for output in outputs for end in _trace_back(output, supported)}


def _trace_back(tensor: Any, supported: Collection[int]) -> set[int]:
    while True:
        operation, node_index, position = tensor._keras_history
        if id(operation) in supported:
            return {id(operation)}
        inner = getattr(operation, "_functional", operation)
        if hasattr(inner, "operations") and hasattr(inner, "outputs"):
            return _trace_back(inner.outputs[position], supported)
        sources = operation._inbound_nodes[node_index].input_tensors
        if len(sources) != 1 or (isinstance(operation, keras.Layer) and operation.trainable_variables):
            return set()
        tensor = sources[0]
