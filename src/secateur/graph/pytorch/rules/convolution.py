"""Rules for convolutions, grouped, depthwise and transposed."""

from __future__ import annotations

import numpy as np

from secateur.graph.group import Role
from secateur.graph.labels import Labels
from secateur.graph.program import Call
from secateur.graph.pytorch.rules.linear import add_bias
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import find_vector
from secateur.graph.tracer import Tracer

__all__: list[str] = []

POSITIONS = "are positions of a convolution"


@register_rule("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution", "aten._convolution")
def follow_convolution(tracer: Tracer, call: Call) -> None:
    """Output channels produce, input channels consume; see `_convolve`."""
    _convolve(tracer, call, is_transposed=call.get("transposed", False))


@register_rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def follow_transposed_convolution(tracer: Tracer, call: Call) -> None:
    """As a convolution, but the weight stores its input channels first."""
    _convolve(tracer, call, is_transposed=True)


def _convolve(tracer: Tracer, call: Call, *, is_transposed: bool) -> None:
    """Follow a convolution.

    With several groups, whole groups are units, with their inputs and outputs: every group then keeps its shape. A
    depthwise convolution is the case of one input channel per group.
    """
    value, weight, groups = call["input"], call["weight"], call.get("groups", 1)
    channel = len(value.shape) - len(weight.shape) + 1
    labels = [
        tracer.fix_axes(array, [axis for axis in range(array.ndim) if axis > channel], POSITIONS)
        for array in tracer.get_labels(value)
    ]
    others = [array for array in labels if array.shape[channel] == 1]
    inputs = find_vector(tracer, labels, channel, value.shape[channel], POSITIONS)
    weights = tracer.get_labels(weight)
    first, second = (find_vector(tracer, weights, axis, weight.shape[axis], POSITIONS) for axis in (0, 1))
    for array in tracer.get_labels(weight):
        tracer.consume(array)
    if groups == 1:
        consumed, produced = (first, second) if is_transposed else (second, first)
        tracer.mark_role(consumed, Role.CONSUMER)
        tracer.mark_role(produced, Role.PRODUCER)
        tracer.unite(inputs, consumed)
    else:
        produced = _follow_groups(tracer, inputs, (first, second), groups, is_transposed=is_transposed)
    shape = [1] * len(call.output.shape)
    shape[channel] = len(produced)
    tracer.set_labels(
        call.output, [*others, *add_bias(tracer, call, [produced.reshape(shape)], call.get("bias"), channel)]
    )


def _follow_groups(
    tracer: Tracer, inputs: Labels, weight: tuple[Labels, Labels], groups: int, *, is_transposed: bool
) -> Labels:
    """Unite the inputs and the outputs of each group, and return the labels of the outputs."""
    first, second = weight
    tracer.pin(second, "must have the same number of channels in every group")
    tracer.mark_role(first, Role.PRODUCER)
    rows = first.reshape(groups, -1)
    tracer.unite(rows, rows[:, :1])
    tracer.unite(inputs.reshape(groups, -1), rows[:, :1])
    if not is_transposed:
        return first
    return np.repeat(rows[:, 0], len(second))
