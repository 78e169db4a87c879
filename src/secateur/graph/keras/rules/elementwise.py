"""Rules for layers and operations that treat all elements in the same way, with broadcasting."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.graph.alignment import align_values
from secateur.graph.keras.layer_rules import activate, get_weight, register_layer_rule
from secateur.graph.program import Call, Value, iterate_values
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

LAYERS = (
    "ReLU LeakyReLU ELU Identity ActivityRegularization AlphaDropout Dropout GaussianDropout GaussianNoise "
    "SpatialDropout1D SpatialDropout2D SpatialDropout3D"
)
MERGES = "Add Average Maximum Minimum Multiply Subtract"
UNARY = (
    "abs absolute angle arccos arccosh arcsin arcsinh arctan arctanh bitwise_invert bitwise_not cast cbrt ceil celu "
    "conj conjugate convert_to_tensor copy cos cosh deg2rad elu empty_like erf erfc erfinv exp exp2 expm1 fabs "
    "floor gelu hard_shrink hard_sigmoid hard_silu hard_tanh i0 imag isfinite isinf isnan isneginf isposinf isreal "
    "leaky_relu log log10 log1p log2 log_sigmoid logical_not nan_to_num negative ones_like rad2deg real reciprocal "
    "relu relu6 round rsqrt saturate_cast selu sigmoid sign signbit silu sin sinc sinh soft_shrink softplus "
    "softsign sparse_plus sparse_sigmoid sqrt square squareplus stop_gradient tan tanh tanh_shrink threshold trunc "
    "zeros_like"
)
MANY = (
    "add arctan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor clip divide divide_no_nan "
    "equal floor_divide fmax fmin fmod full_like gcd greater greater_equal heaviside hypot isclose lcm ldexp "
    "left_shift less less_equal logaddexp logaddexp2 logical_and logical_or logical_xor maximum minimum mod multiply "
    "nextafter not_equal power right_shift subtract true_divide where"
)


@register_layer_rule(*LAYERS.split())
def follow_elements(tracer: Tracer, call: Call) -> None:
    """Keep the labels."""
    tracer.set_labels(call.output, tracer.get_labels(call["inputs"]))


@register_layer_rule("InputLayer")
def follow_inputs(tracer: Tracer, call: Call) -> None:
    """Keep the labels of the inputs of a model inside another."""
    for value, output in zip(call["inputs"], call.outputs, strict=True):
        assert output is not None
        tracer.set_labels(output, tracer.get_labels(value))


@register_layer_rule("Activation")
def follow_activation(tracer: Tracer, call: Call) -> None:
    """Keep the labels of an activation that treats all elements in the same way."""
    activate(tracer, call, tracer.get_labels(call["inputs"]))


@register_layer_rule("PReLU", weights=("alpha",))
def follow_prelu(tracer: Tracer, call: Call) -> None:
    """Unite the labels of the input with those of its slopes, which have no batch axis."""
    alpha = get_weight(call, "alpha")
    assert alpha is not None
    tracer.set_labels(call.output, align_values(tracer, [call["inputs"], alpha], len(call.output.shape)))


@register_layer_rule("Rescaling")
def follow_rescaling(tracer: Tracer, call: Call) -> None:
    """Keep the labels, unless each channel has its own factor."""
    layer = call["operation"]
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        tracer.stop("has a constant factor for each channel")
    else:
        follow_elements(tracer, call)


@register_layer_rule(*MERGES.split())
def follow_merge(tracer: Tracer, call: Call) -> None:
    """Unite the labels of all inputs, aligned from the last axis."""
    values = call["inputs"]
    if len({len(value.shape) for value in values}) > 1:
        tracer.stop("has no rule for inputs with different numbers of axes")
        return
    tracer.set_labels(call.output, align_values(tracer, values, len(call.output.shape)))


@register_rule(*(f"keras.ops.{name}" for name in f"{UNARY} {MANY}".split()))
def follow_elementwise_operation(tracer: Tracer, call: Call) -> None:
    """Unite the labels of all inputs, aligned from the last axis."""
    arguments = [item for name, item in call.arguments.items() if name not in ("operation", "weights", "constants")]
    values = [*(_describe_constant(item) for item in arguments), *call["constants"].values()]
    tensors = [value for value in values if isinstance(value, Value)]
    tracer.set_labels(call.output, align_values(tracer, tensors, len(call.output.shape)))


def _describe_constant(item: Any) -> Any:
    """Return lists of numbers as tensors."""
    if isinstance(item, list | tuple) and not any(iterate_values(item)):
        return Value(np.shape(item), is_static=True)
    return item
