"""Rules for dense layers, products of matrices, einsum and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.alignment import Operand, align, contract
from secateur.graph.group import Role
from secateur.graph.keras.layer_rules import activate, get_weight, register_layer_rule
from secateur.graph.labels import Labels, find_axes
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import multiply_matrices, parse_einsum
from secateur.graph.tracer import Tracer

__all__ = ["add_bias", "follow_projection"]


@register_layer_rule("Dense", weights=("kernel", "bias"))
def follow_dense(tracer: Tracer, call: Call) -> None:
    """Columns of the kernel produce the outputs, its rows consume the inputs."""
    value, rank = call["inputs"], len(call["inputs"].shape)
    kernel = get_weight(call, "kernel")
    assert kernel is not None
    labels = contract(tracer, [(value, range(rank)), (kernel, (rank - 1, rank))], [*range(rank - 1), rank])
    activate(tracer, call, add_bias(tracer, call.output, labels, get_weight(call, "bias")))


def add_bias(tracer: Tracer, output: Value, labels: Sequence[Labels], bias: Value | None) -> list[Labels]:
    """Unite the labels of a bias with those of the outputs, aligned from the last axis."""
    if bias is None:
        return list(labels)
    rank = len(output.shape)
    added = Operand.from_value(tracer, bias, range(rank - len(bias.shape), rank), rank)
    return align(tracer, [Operand(output.shape, list(labels)), added])


@register_layer_rule("EinsumDense", weights=("kernel", "bias"))
def follow_einsum_dense(tracer: Tracer, call: Call) -> None:
    """Letters of the kernel that the output has produce; those that it does not have consume."""
    weights = get_weight(call, "kernel"), get_weight(call, "bias")
    labels = follow_projection(tracer, call["operation"].equation, call["inputs"], weights, call.output)
    if labels is None:
        tracer.stop("has a diagonal in its equation")
    else:
        activate(tracer, call, labels)


def follow_projection(
    tracer: Tracer, equation: str, value: Value, weights: tuple[Value | None, Value | None], output: Value
) -> list[Labels] | None:
    """Follow an einsum of a tensor with a kernel, to which a bias is added; ``None`` if the equation has a diagonal."""
    kernel, bias = weights
    assert kernel is not None
    axes = parse_einsum(equation, [len(value.shape), len(kernel.shape)])
    if axes is None:
        return None
    (first, second), result = axes
    return add_bias(tracer, output, contract(tracer, [(value, first), (kernel, second)], result), bias)


@register_rule("keras.ops.matmul", "keras.ops.dot")
def follow_matmul(tracer: Tracer, call: Call) -> None:
    """Follow a product of matrices. Batch axes of products of activations are attention heads."""
    first, second = call["x1"], call["x2"]
    tensors = [factor for factor in (first, second) if isinstance(factor, Value) and factor.shape]
    if len(tensors) == 1:  # the other is a number
        tracer.set_labels(call.output, tracer.get_labels(tensors[0]))
        return
    if call.operation == "keras.ops.dot" and max(len(first.shape), len(second.shape)) > 2:
        tracer.stop("has no rule for tensors with more than two axes")
        return
    labels = multiply_matrices(tracer, first, second)
    tracer.set_labels(call.output, labels)
    if not first.is_static and not second.is_static:
        _mark_heads(tracer, call.output, range(len(call.output.shape) - 2))


def _mark_heads(tracer: Tracer, output: Value, axes: Sequence[int]) -> None:
    for array in tracer.get_labels(output):
        if any(axis in axes for axis in find_axes(array)):
            tracer.mark_heads(array)


@register_rule("keras.ops.einsum")
def follow_einsum(tracer: Tracer, call: Call) -> None:
    """Follow an einsum without diagonals."""
    values = call["operands"]
    axes = parse_einsum(call["operation"].subscripts, [len(value.shape) for value in values])
    if axes is None:
        tracer.stop("has a diagonal in its equation")
        return
    terms, output = axes
    tracer.set_labels(call.output, contract(tracer, list(zip(values, terms, strict=True)), output))
    if len(values) > 1 and not any(value.is_static for value in values):
        shared = [place for place, axis in enumerate(output) if all(axis in term for term in terms)]
        _mark_heads(tracer, call.output, shared)


@register_layer_rule("Dot")
def follow_dot(tracer: Tracer, call: Call) -> None:
    """Follow a product of two tensors that is summed over one axis of each."""
    layer, (first, second) = call["operation"], call["inputs"]
    if layer.normalize:
        tracer.stop("normalizes its inputs")
        return
    axes = [layer.axes] * 2 if isinstance(layer.axes, int) else list(layer.axes)
    left, right = len(first.shape), len(second.shape)
    summed, other = axes[0] % left, axes[1] % right
    term = [0, *range(left, left + right - 1)]
    term[other] = summed
    output = [axis for axis in [*range(left), *term[1:]] if axis != summed]
    labels = contract(tracer, [(first, range(left)), (second, term)], output)
    if len(output) < len(call.output.shape):  # one value per example keeps an axis
        labels = [array.reshape((*array.shape, 1)) for array in labels]
    tracer.set_labels(call.output, labels)


@register_layer_rule("Embedding", weights=("embeddings",))
def follow_embedding(tracer: Tracer, call: Call) -> None:
    """Columns of the table produce the outputs. Its rows are looked up by number."""
    table = get_weight(call, "embeddings")
    assert table is not None
    rank, labels = len(call.output.shape), []
    for array in tracer.get_labels(table):
        columns = tracer.fix_axes(array, [0], "looks them up by number")
        if columns.size > 1:
            tracer.mark_role(columns, Role.PRODUCER)
            labels.append(columns.reshape([1] * (rank - 1) + [-1]))
    tracer.set_labels(call.output, labels)


@register_layer_rule("ReversibleEmbedding", weights=("embeddings", "reverse_embeddings"))
def follow_reversible_embedding(tracer: Tracer, call: Call) -> None:
    """Look up the rows of the table, or multiply by its transpose."""
    table, other = get_weight(call, "embeddings"), get_weight(call, "reverse_embeddings")
    assert table is not None
    is_reversed = call.get("reverse", False)
    for array in tracer.get_labels(table if is_reversed else other) if other is not None else ():
        tracer.consume(array)
    if not is_reversed:
        follow_embedding(tracer, call)
        return
    rank = len(call["inputs"].shape)
    factor = (table, (rank, rank - 1)) if other is None else (other, (rank - 1, rank))
    labels = contract(tracer, [(call["inputs"], range(rank)), factor], [*range(rank - 1), rank])
    tracer.set_labels(call.output, labels)
