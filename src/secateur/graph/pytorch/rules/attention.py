"""Rules for scaled dot-product attention."""

from __future__ import annotations

from secateur.graph.alignment import Operand, align, contract
from secateur.graph.labels import Labels, find_axes
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

FUSED = (
    "scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math_for_mps _scaled_dot_product_fused_attention_overrideable"
)


@register_rule(*(f"aten.{name}" for name in FUSED.split()))
def follow_attention(tracer: Tracer, call: Call) -> None:
    """Follow query · key → scores, and scores · value → output, head by head.

    With ``enable_gqa``, each key/value head serves a run of query heads, and is one unit with them.
    """
    query, key, value = call["query"], call["key"], call["value"]
    batch = len(query.shape) - 2
    repeats = query.shape[batch - 1] // key.shape[batch - 1] if batch else 1
    if repeats > 1:
        key, value = (_repeat_heads(tracer, item, batch - 1, repeats) for item in (key, value))
    rows, inner, columns, outputs = range(batch, batch + 4)
    own = list(range(batch))
    factors = [(query, [*own, rows, inner]), (key, [*own, columns, inner])]
    scores = Value((*query.shape[:-1], key.shape[-2]))
    tracer.set_labels(scores, contract(tracer, factors, [*own, rows, columns]))
    tracer.set_labels(scores, _add_mask(tracer, call, scores))
    factors = [(scores, [*own, rows, columns]), (value, [*own, columns, outputs])]
    labels = contract(tracer, factors, [*own, rows, outputs])
    for array in labels:
        if any(axis < batch for axis in find_axes(array)):
            tracer.mark_heads(array)
    tracer.set_labels(call.output, labels)


def _add_mask(tracer: Tracer, call: Call, scores: Value) -> list[Labels]:
    mask, rank = call.get("attn_mask", call.get("attn_bias")), len(scores.shape)
    operands = [Operand.from_value(tracer, scores, range(rank), rank)]
    if isinstance(mask, Value):
        operands.append(Operand.from_value(tracer, mask, range(rank - len(mask.shape), rank), rank))
    return align(tracer, operands)


def _repeat_heads(tracer: Tracer, value: Value, axis: int, repeats: int) -> Value:
    """Return the keys or values with one head per query head."""
    shape = (*value.shape[:axis], value.shape[axis] * repeats, *value.shape[axis + 1 :])
    repeated = Value(shape, value.is_static)
    labels = [
        array.repeat(repeats, axis=axis) if array.shape[axis] > 1 else array for array in tracer.get_labels(value)
    ]
    tracer.set_labels(repeated, labels)
    return repeated
