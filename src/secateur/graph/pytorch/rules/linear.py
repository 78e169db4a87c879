"""Rules for linear layers, products of matrices, einsum and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.alignment import Operand, align, contract
from secateur.graph.group import Role
from secateur.graph.labels import Labels, find_axes
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import multiply_matrices
from secateur.graph.tracer import Tracer

__all__ = ["add_bias"]


@register_rule("aten.linear")
def follow_linear(tracer: Tracer, call: Call) -> None:
    """Rows of the weight produce the outputs, its columns consume the inputs."""
    value, weight = call["input"], call["weight"]
    rank = len(value.shape)
    term = (rank, rank - 1) if len(weight.shape) == 2 else (rank - 1,)
    output = [*range(rank - 1), rank][: len(call.output.shape)]
    labels = contract(tracer, [(value, range(rank)), (weight, term)], output, weight=1)
    tracer.set_labels(call.output, add_bias(tracer, call, labels, call.get("bias"), len(output) - 1))


def add_bias(tracer: Tracer, call: Call, labels: Sequence[Labels], bias: Value | None, axis: int) -> list[Labels]:
    """Unite the labels of the bias of a layer with those of its outputs."""
    if bias is None:
        return list(labels)
    rank = len(call.output.shape)
    result = Operand(call.output.shape, list(labels))
    return align(tracer, [result, Operand.from_value(tracer, bias, [axis], rank)])


@register_rule("aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv")
def follow_addmm(tracer: Tracer, call: Call) -> None:
    """Follow a product of matrices, to which a bias is added."""
    first = call.get("mat1", call.get("batch1", call.get("mat")))
    second = call.get("mat2", call.get("batch2", call.get("vec")))
    labels = multiply_matrices(tracer, first, second)
    rank, bias = len(call.output.shape), call["self"]
    result = Operand(call.output.shape, labels)
    added = Operand.from_value(tracer, bias, range(rank - len(bias.shape), rank), rank)
    tracer.set_labels(call.output, align(tracer, [result, added]))


@register_rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.vdot")
def follow_matmul(tracer: Tracer, call: Call) -> None:
    """Follow a product of matrices. Batch axes of products of activations are attention heads."""
    first = call.get("self")
    second = call.get("other", call.get("mat2", call.get("vec", call.get("tensor"))))
    labels = multiply_matrices(tracer, first, second)
    tracer.set_labels(call.output, labels)
    if not first.is_static and not second.is_static:
        for array in labels:
            if any(axis < array.ndim - 2 for axis in find_axes(array)):
                tracer.mark_heads(array)


@register_rule("aten.outer", "aten.ger")
def follow_outer(tracer: Tracer, call: Call) -> None:
    """Follow the outer product of two vectors."""
    tracer.set_labels(call.output, contract(tracer, [(call["self"], [0]), (call["vec2"], [1])], [0, 1]))


@register_rule("aten.einsum")
def follow_einsum(tracer: Tracer, call: Call) -> None:
    """Follow an einsum without ellipsis and diagonals."""
    equation, values = call["equation"].replace(" ", ""), call["tensors"]
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow or "." in equation or any(len(set(term)) < len(term) for term in terms):
        tracer.stop("has an ellipsis, a diagonal or no output in its equation")
        return
    letters = sorted(set(inputs) - {","})
    factors = [(value, [letters.index(letter) for letter in term]) for value, term in zip(values, terms, strict=True)]
    tracer.set_labels(call.output, contract(tracer, factors, [letters.index(letter) for letter in output]))
    if all(not value.is_static for value in values) and len(values) > 1:
        shared = {letter for letter in output if all(letter in term for term in terms)}
        for array in tracer.get_labels(call.output):
            if any(output[axis] in shared for axis in find_axes(array)):
                tracer.mark_heads(array)


@register_rule("aten.embedding")
def follow_embedding(tracer: Tracer, call: Call) -> None:
    """Columns of the table produce the outputs. Its rows are looked up by number."""
    weight, rank = call["weight"], len(call.output.shape)
    labels = []
    for array in tracer.get_labels(weight):
        columns = tracer.fix_axes(array, [0], "looks them up by number")
        if columns.size > 1:
            tracer.mark_role(columns, Role.PRODUCER)
            labels.append(columns.reshape([1] * (rank - 1) + [-1]))
    tracer.set_labels(call.output, labels)


@register_rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def follow_grouped_product(tracer: Tracer, call: Call) -> None:
    """Follow the products of a mixture of experts: one weight of shape (experts, inputs, outputs) for all."""
    value = call.get("input", call.get("self"))
    weight = call.get("weight", call.get("mat2"))
    if len(value.shape) != 2 or len(weight.shape) != 3:
        tracer.stop("has no rule for these shapes")
        return
    labels = [tracer.fix_axes(array, [0], "chooses among them") for array in tracer.get_labels(weight)]
    experts = Value(weight.shape, weight.is_static)
    tracer.set_labels(experts, labels)
    tracer.set_labels(call.output, contract(tracer, [(value, (0, 1)), (experts, (2, 1, 3))], (0, 3), weight=1))
