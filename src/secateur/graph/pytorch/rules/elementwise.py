"""Rules for operations that treat all elements in the same way, with broadcasting, and for new tensors."""

from __future__ import annotations

from secateur.graph.alignment import align_values, align_vectors
from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

UNARY = (
    "zero abs acos acosh alias asin asinh atan atanh bernoulli bitwise_not ceil celu clone contiguous cos cosh "
    "detach detach_copy digamma dropout alpha_dropout feature_dropout elu erf erfc erfinv exp exp2 expm1 "
    "floor frac gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lgamma lift_fresh_copy "
    "log log10 log1p log2 logical_not logit mish nan_to_num native_dropout neg positive rad2deg reciprocal relu relu6 "
    "round rrelu rsqrt selu sgn sigmoid sign silu sin sinh softplus softshrink softsign sqrt square tan tanh "
    "tanhshrink threshold to _to_copy type_as trunc zeros_like ones_like full_like empty_like rand_like randn_like "
    "log_sigmoid log_sigmoid_forward conj resolve_conj resolve_neg"
)
MANY = (
    "add addcdiv addcmul atan2 bitwise_and bitwise_or bitwise_xor clamp clamp_max clamp_min clip fill copy copysign "
    "div divide eq floor_divide fmax fmin fmod ge greater greater_equal gt hypot le less less_equal lerp "
    "logaddexp logaddexp2 logical_and logical_or logical_xor lt masked_fill maximum minimum mul multiply ne "
    "not_equal pow _prelu_kernel remainder rsub __and__ __or__ __xor__ sub subtract true_divide where xlogy"
)
EQUAL = "empty full new_empty new_full new_ones new_zeros ones zeros"
NEW = "arange eye linspace rand randn randint scalar_tensor tril_indices triu_indices"
IGNORED = "_assert_tensor_metadata _assert_async _assert_scalar sym_constrain_range sym_constrain_range_for_size"


@register_rule("aten.expand_as", *(f"aten.{name}" for name in f"{UNARY} {MANY}".split()))
def follow_elements(tracer: Tracer, call: Call) -> None:
    """Unite the labels of all inputs, aligned from the last axis."""
    output = call.output
    tracer.set_labels(output, align_values(tracer, call.inputs, len(output.shape)))
    for other in call.outputs[1:]:  # such as the mask of a dropout
        if other is not None and other.shape == output.shape:
            tracer.set_labels(other, tracer.get_labels(output))


@register_rule("aten.prelu")
def follow_prelu(tracer: Tracer, call: Call) -> None:
    """Unite the channels of a PReLU with its slopes."""
    tracer.set_labels(call.output, align_vectors(tracer, call["self"], [call["weight"]], 1))


@register_rule(*(f"aten.{name}" for name in EQUAL.split()))
def follow_equal_elements(tracer: Tracer, call: Call) -> None:
    """Give the new tensor labels, because any index of it may be left out."""
    ignore_inputs(tracer, call)
    tracer.add_new_tensor(call)


@register_rule(*(f"aten.{name}" for name in f"{NEW} {IGNORED}".split()))
def ignore_inputs(tracer: Tracer, call: Call) -> None:
    """Follow nothing: the size of the new tensor is part of the code, or there is none."""
    for value in call.inputs:
        for labels in tracer.get_labels(value):
            tracer.consume(labels)
