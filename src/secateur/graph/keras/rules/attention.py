"""Rules for attention, whose heads are an axis of the kernels."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.alignment import Operand, align, align_values, contract
from secateur.graph.keras.layer_rules import get_weight, register_layer_rule
from secateur.graph.keras.rules.linear import follow_projection
from secateur.graph.labels import find_axes
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import fix_scanned_axis
from secateur.graph.tracer import Tracer

__all__: list[str] = []

PROJECTIONS = ("query", "key", "value", "gate", "attention_output")
WEIGHTS = tuple(f"{name}/{part}" for name in PROJECTIONS for part in ("kernel", "bias"))


@register_layer_rule("MultiHeadAttention", weights=WEIGHTS)
def follow_multi_head_attention(tracer: Tracer, call: Call) -> None:
    """Heads are units, and so are the channels of values if every backend supports attention without some of them.

    JAX fuses attention only for values as wide as keys, and layers with a dropout do not fuse it.
    """
    layer = call["operation"]
    if layer.value_dim == layer.key_dim and not layer.dropout:
        _pin_channels_of_values(tracer, call, "fuses attention, which JAX does only for values as wide as keys")
    _attend_with_projections(tracer, call, layer.attention_axes)


@register_layer_rule("GroupedQueryAttention", weights=WEIGHTS)
def follow_grouped_query_attention(tracer: Tracer, call: Call) -> None:
    """Each key/value head serves a run of query heads, and is one unit with them."""
    _pin_channels_of_values(tracer, call, "has one size for the heads of queries, keys and values")
    _attend_with_projections(tracer, call, (1,))


def _pin_channels_of_values(tracer: Tracer, call: Call, reason: str) -> None:
    """Record that the channels of values can be set to zero, but not removed."""
    kernel = get_weight(call, "value/kernel")
    assert kernel is not None
    for array in tracer.get_labels(kernel):
        tracer.fix_axes(array, [2], reason)


def _attend_with_projections(tracer: Tracer, call: Call, axes: Sequence[int]) -> None:
    inputs = {"query": call["query"], "key": call.get("key"), "value": call["value"], "gate": call["query"]}
    inputs["key"] = inputs["value"] if inputs["key"] is None else inputs["key"]
    heads = {name: _project(tracer, call, name, value) for name, value in inputs.items() if _has(call, name)}
    query = heads["query"]
    repeats = query.shape[-2] // heads["key"].shape[-2]
    key, value = (_repeat_heads(tracer, heads[name], repeats) for name in ("key", "value"))
    combined, scores = _attend(tracer, (query, key, value), axes, call.get("attention_mask"))
    if "gate" in heads:
        tracer.set_labels(combined, align_values(tracer, [combined, heads["gate"]], len(combined.shape)))
    tracer.set_labels(call.output, tracer.get_labels(_project(tracer, call, "attention_output", combined)))
    if len(call.outputs) > 1 and call.outputs[1] is not None:
        tracer.set_labels(call.outputs[1], tracer.get_labels(scores))


def _has(call: Call, name: str) -> bool:
    return get_weight(call, f"{name}/kernel") is not None


def _project(tracer: Tracer, call: Call, name: str, value: Value) -> Value:
    """Follow one of the inner dense layers, and return its output."""
    kernel, bias = get_weight(call, f"{name}/kernel"), get_weight(call, f"{name}/bias")
    assert kernel is not None
    summed = 2 if name == "attention_output" else 1
    left = "abcdefghij"[: len(value.shape) - summed]
    inner, outer = "pq"[:summed], "xyz"[: len(kernel.shape) - summed]
    shape = (*value.shape[: len(left)], *kernel.shape[summed:])
    output = Value(shape)
    labels = follow_projection(tracer, f"{left}{inner},{inner}{outer}->{left}{outer}", value, (kernel, bias), output)
    assert labels is not None
    tracer.set_labels(output, labels)
    return output


def _repeat_heads(tracer: Tracer, value: Value, repeats: int) -> Value:
    """Return keys or values with one head per query head."""
    if repeats == 1:
        return value
    repeated = Value((*value.shape[:-2], value.shape[-2] * repeats, value.shape[-1]))
    labels = [array.repeat(repeats, axis=-2) if array.shape[-2] > 1 else array for array in tracer.get_labels(value)]
    tracer.set_labels(repeated, labels)
    return repeated


def _attend(
    tracer: Tracer, tensors: tuple[Value, Value, Value], axes: Sequence[int], mask: Value | None
) -> tuple[Value, Value]:
    """Follow query · key → scores, and scores · value → output, head by head.

    Args:
        tracer: The tracer.
        tensors: Query, key and value, of shape (batch, positions ..., heads, channels).
        axes: The axes of positions that attend to each other; others are part of the batch.
        mask: A mask of the scores, or ``None``.

    Returns:
        The output, and the scores of shape (batch, heads, query positions ..., key positions ...).
    """
    query, key, value = tensors
    rank = len(query.shape)
    heads, inner, outputs = rank - 2, rank - 1, 2 * rank
    keys = [rank + axis if axis in axes else axis for axis in range(rank - 2)]
    batch = [axis for axis in range(rank - 2) if axis not in axes]
    term = [*batch, heads, *axes, *(rank + axis for axis in axes)]
    own = [query.shape[axis] for axis in [*batch, heads, *axes]]
    scores = Value((*own, *(key.shape[axis] for axis in axes)))
    products = contract(tracer, [(query, range(rank)), (key, [*keys, heads, inner])], term)
    attended = range(len(term) - len(axes), len(term))
    operands = [Operand(scores.shape, fix_scanned_axis(tracer, products, attended))]
    if isinstance(mask, Value):
        places = [*range(len(mask.shape) - 2 * len(axes)), *range(len(term) - 2 * len(axes), len(term))]
        operands.append(Operand.from_value(tracer, mask, places, len(term)))
    tracer.set_labels(scores, align(tracer, operands))
    combined = Value((*query.shape[:-1], value.shape[-1]))
    labels = contract(tracer, [(scores, term), (value, [*keys, heads, outputs])], [*range(rank - 1), outputs])
    for array in labels:
        if heads in find_axes(array):
            tracer.mark_heads(array)
    tracer.set_labels(combined, labels)
    return combined, scores


@register_rule("keras.ops.dot_product_attention")
def follow_attention_operation(tracer: Tracer, call: Call) -> None:
    """Follow attention over tensors of shape (batch, positions, heads, channels). Keras has one size for channels."""
    query, key, value = (_fix_channels(tracer, call[name]) for name in ("query", "key", "value"))
    repeats = query.shape[2] // key.shape[2]
    key, value = (_repeat_heads(tracer, item, repeats) for item in (key, value))
    masks = [item for item in (call.get("mask"), call.get("bias")) if isinstance(item, Value)]
    if len(masks) > 1:
        tracer.stop("has a mask and a bias")
        return
    combined, _ = _attend(tracer, (query, key, value), (1,), masks[0] if masks else None)
    tracer.set_labels(call.output, tracer.get_labels(combined))


def _fix_channels(tracer: Tracer, value: Value) -> Value:
    """Return a tensor whose labels do not depend on its last axis, so that only whole heads are units."""
    fixed, last = Value(value.shape), len(value.shape) - 1
    reason = "has one size for the channels of queries, keys and values"
    tracer.set_labels(fixed, [tracer.fix_axes(array, [last], reason) for array in tracer.get_labels(value)])
    return fixed


@register_layer_rule("Attention", weights=("scale",))
def follow_dot_attention(tracer: Tracer, call: Call) -> None:
    """Follow attention without heads and projections."""
    if call["operation"].score_mode != "dot":
        tracer.stop("adds queries and keys")
        return
    query, value, *keys = call["inputs"]
    key = keys[0] if keys else value
    scores = Value((query.shape[0], query.shape[1], key.shape[1]))
    labels = contract(tracer, [(query, (0, 1, 3)), (key, (0, 2, 3))], (0, 1, 2))
    tracer.set_labels(scores, fix_scanned_axis(tracer, labels, [2]))
    outputs = contract(tracer, [(scores, (0, 1, 2)), (value, (0, 2, 3))], (0, 1, 3))
    tracer.set_labels(call.output, outputs)
    if len(call.outputs) > 1 and call.outputs[1] is not None:
        tracer.set_labels(call.outputs[1], tracer.get_labels(scores))
