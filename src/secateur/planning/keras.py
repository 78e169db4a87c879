"""Find the layers of a Keras model, and its output layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import keras

from secateur.config import PruningConfig
from secateur.errors import LayerError, UnsupportedModelError
from secateur.frameworks.keras import (
    find_weight_layers,
    get_kernel,
    get_matrices,
    get_type_names,
    list_inner_layers,
    list_layers,
)
from secateur.planning.layers import Candidate
from secateur.planning.planner import Plan, make_plan

__all__ = ["find_candidates", "plan"]

FROZEN = "frozen (trainable=False)"


def plan(model: keras.Model, config: PruningConfig | Mapping[str, Any], *, prune_frozen: bool = False) -> Plan:
    """See `secateur.plan`; with `prune_frozen`, frozen layers may be pruned too.

    Raises:
        UnsupportedModelError: The model is not built, so that its kernels have no shape yet.
    """
    if not model.built:
        raise UnsupportedModelError(
            f"The model {model.name!r} must be built, so that its kernels have shapes. "
            f"Call model.build(input_shape), or call the model with one batch, first."
        )
    return make_plan(config, find_candidates(model, prune_frozen=prune_frozen), list(list_layers(model)), "keras")


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
