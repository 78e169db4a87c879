"""The layers of a Keras model, and which of them is its output."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import keras

from secateur.config import PruningConfig
from secateur.errors import LayerError, UnsupportedModelError
from secateur.patterns.keras import families, kernel
from secateur.planning.layers import Candidate
from secateur.planning.resolve import Plan, make_plan

__all__ = ["candidates", "named_layers", "plan"]

SEPARATOR = "/"
"""Between the names of a layer and of the layer that holds it."""


FROZEN = "frozen (trainable=False)"


def plan(model: keras.Model, config: PruningConfig | Mapping[str, Any], *, prune_frozen: bool = False) -> Plan:
    """See `secateur.plan`; with `prune_frozen`, layers that training leaves alone may be pruned too.

    Raises:
        UnsupportedModelError: The model is not built, so that its kernels have no shape yet.
    """
    if not model.built:
        raise UnsupportedModelError(
            f"The model {model.name!r} must be built, so that its kernels have shapes. Call model.build(input_shape), "
            f"or the model on one batch, first."
        )
    layers = named_layers(model)
    return make_plan(config, candidates(model, prune_frozen=prune_frozen), list(layers), "keras")


def named_layers(model: keras.Model) -> dict[str, keras.Layer]:
    """Every layer within a model, by the names that lead to it, as in ``encoder/attention/query``; each once."""
    found: dict[str, keras.Layer] = {}
    for name, layer in _walk(model, "", {id(model)}):
        unique, count = name, 2
        while unique in found:
            unique, count = f"{name}#{count}", count + 1
        found[unique] = layer
    return found


def _walk(parent: keras.Layer, prefix: str, seen: set[int]) -> Iterator[tuple[str, keras.Layer]]:
    for layer in _children(parent):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield prefix + layer.name, layer
            yield from _walk(layer, f"{prefix}{layer.name}{SEPARATOR}", seen)


def _children(layer: keras.Layer) -> list[keras.Layer]:
    # Keras has no public way to list the layers within a layer that is not a model.
    children: list[keras.Layer] = layer._flatten_layers(include_self=False, recursive=False)
    return children


def candidates(model: keras.Model, *, prune_frozen: bool = False) -> list[Candidate]:
    """Every layer that owns a variable of two axes or more, in the model's order.

    A frozen one has that as a reason to stay dense, unless `prune_frozen`.
    """
    layers = {name: layer for name, layer in named_layers(model).items() if families(layer) or _own_matrices(layer)}
    outputs = _output_layers(model, layers.values())
    found = [_candidate(name, layer, is_output=id(layer) in outputs) for name, layer in layers.items()]
    return [replace(one, reason=None) if prune_frozen and one.reason == FROZEN else one for one in found]


def _own_matrices(layer: keras.Layer) -> list[keras.Variable]:
    """The variables of two axes or more that a layer has itself, rather than a layer within it."""
    inner = {id(variable) for child in _children(layer) for variable in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inner and len(weight.shape) > 1]


def _candidate(name: str, layer: keras.Layer, *, is_output: bool) -> Candidate:
    weight: keras.Variable | None
    reason: str | None = None
    try:
        weight = kernel(layer)
        if not weight.trainable:
            reason = FROZEN
    except LayerError as error:
        weight = next(iter(_own_matrices(layer)), None)
        reason = str(error)
    return Candidate(
        name=name,
        module=layer,
        types=families(layer) or (type(layer).__name__,),
        shape=() if weight is None else tuple(weight.shape),
        weight_id=id(layer) if weight is None else id(weight),
        is_output=is_output,
        reason=reason,
    )


def _output_layers(model: keras.Model, layers: Collection[keras.Layer]) -> set[int]:
    """Identities of the layers whose outputs the model returns, as they are or through layers without a kernel."""
    fitting = [layer for layer in layers if families(layer)]
    ends = _graph_ends(model, {id(layer) for layer in fitting})
    if ends is not None:
        return ends
    # A subclassed model has no graph. Its last layer counts, unless it lies within another, as in a stack of blocks.
    own = {id(layer) for layer in _children(model)}
    return {id(layer) for layer in fitting[-1:] if id(layer) in own}


def _graph_ends(model: keras.Model, fitting: Collection[int]) -> set[int] | None:
    """The last layers of `fitting` on the way to each output; ``None``: the model has no graph."""
    functional = getattr(model, "_functional", model)
    outputs = getattr(functional, "outputs", None)
    if outputs is None or not hasattr(functional, "operations"):
        return None
    return {end for output in outputs for end in _end(output, fitting)}


def _end(tensor: Any, fitting: Collection[int]) -> set[int]:
    while True:
        operation, node_index, position = tensor._keras_history
        if id(operation) in fitting:
            return {id(operation)}
        inner = getattr(operation, "_functional", operation)
        if hasattr(inner, "operations") and hasattr(inner, "outputs"):
            return _end(inner.outputs[position], fitting)
        sources = operation._inbound_nodes[node_index].input_tensors
        if len(sources) != 1 or (isinstance(operation, keras.Layer) and operation.trainable_variables):
            return set()
        tensor = sources[0]
