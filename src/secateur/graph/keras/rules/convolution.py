"""Rules for convolutions: grouped, depthwise, separable and transposed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from secateur.graph.alignment import Operand, align
from secateur.graph.group import Role
from secateur.graph.keras.layer_rules import activate, get_weight, register_layer_rule
from secateur.graph.labels import Labels
from secateur.graph.program import Call, Value
from secateur.graph.rules import register_rule
from secateur.graph.shared_rules import find_vector
from secateur.graph.tracer import Tracer

__all__ = ["find_channel_axis"]

POSITIONS = "slides over them"
WEIGHTS = ("kernel", "bias")


def find_channel_axis(call: Call, value: Value) -> int:
    """Return the axis of channels, which the layer's data format determines."""
    layout = call["operation"].data_format or "channels_last"
    return 1 if layout == "channels_first" else len(value.shape) - 1


@register_layer_rule("Conv1D", "Conv2D", "Conv3D", weights=WEIGHTS)
def follow_convolution(tracer: Tracer, call: Call) -> None:
    """The last axis of the kernel produces, the one before it consumes."""
    inputs, others = _split_channels(tracer, call, call["inputs"])
    produced = _convolve(tracer, inputs, get_weight(call, "kernel"), call["operation"].groups)
    _finish(tracer, call, [*others, _place(call, produced)], get_weight(call, "bias"))


@register_layer_rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", weights=WEIGHTS)
def follow_transposed_convolution(tracer: Tracer, call: Call) -> None:
    """The last axis of the kernel consumes, the one before it produces."""
    inputs, others = _split_channels(tracer, call, call["inputs"])
    produced = _transpose_convolve(tracer, inputs, get_weight(call, "kernel"))
    _finish(tracer, call, [*others, _place(call, produced)], get_weight(call, "bias"))


@register_layer_rule("DepthwiseConv1D", "DepthwiseConv2D", weights=WEIGHTS)
def follow_depthwise_convolution(tracer: Tracer, call: Call) -> None:
    """Each channel has its own kernels, so it is a unit with its outputs."""
    inputs, others = _split_channels(tracer, call, call["inputs"])
    produced = _convolve_channels(tracer, inputs, get_weight(call, "kernel"))
    _finish(tracer, call, [*others, _place(call, produced)], get_weight(call, "bias"))


@register_layer_rule("SeparableConv1D", "SeparableConv2D", weights=("depthwise_kernel", "pointwise_kernel", "bias"))
def follow_separable_convolution(tracer: Tracer, call: Call) -> None:
    """A depthwise convolution, and a pointwise one after it."""
    inputs, others = _split_channels(tracer, call, call["inputs"])
    inner = _convolve_channels(tracer, inputs, get_weight(call, "depthwise_kernel"))
    produced = _convolve(tracer, inner, get_weight(call, "pointwise_kernel"), 1)
    _finish(tracer, call, [*others, _place(call, produced)], get_weight(call, "bias"))


@register_rule("keras.ops.conv")
def follow_convolution_operation(tracer: Tracer, call: Call) -> None:
    """As the layer; the shape of the kernel determines the number of groups."""
    inputs, others = _split_channels(tracer, call, call["inputs"])
    produced = _convolve(tracer, inputs, call["kernel"], len(inputs) // call["kernel"].shape[-2])
    tracer.set_labels(call.output, [*others, _place(call, produced)])


@register_rule("keras.ops.depthwise_conv")
def follow_depthwise_operation(tracer: Tracer, call: Call) -> None:
    """As the layer."""
    inputs, others = _split_channels(tracer, call, call["inputs"])
    tracer.set_labels(call.output, [*others, _place(call, _convolve_channels(tracer, inputs, call["kernel"]))])


@register_rule("keras.ops.conv_transpose")
def follow_transposed_operation(tracer: Tracer, call: Call) -> None:
    """As the layer."""
    inputs, others = _split_channels(tracer, call, call["inputs"])
    tracer.set_labels(call.output, [*others, _place(call, _transpose_convolve(tracer, inputs, call["kernel"]))])


def _split_channels(tracer: Tracer, call: Call, value: Value) -> tuple[Labels, list[Labels]]:
    """Return the labels of the input's channels, and those of other axes, which must not be positions."""
    channel = find_channel_axis(call, value)
    positions = [axis for axis in range(1, len(value.shape)) if axis != channel]
    labels = [tracer.fix_axes(array, positions, POSITIONS) for array in tracer.get_labels(value)]
    inputs = find_vector(tracer, labels, channel, value.shape[channel], POSITIONS)
    return inputs, [array for array in labels if array.shape[channel] == 1]


def _convolve(tracer: Tracer, inputs: Labels, kernel: Value | None, groups: int) -> Labels:
    """Return the labels of the outputs of a convolution.

    With several groups, whole groups are units, with their inputs and outputs: every group then keeps its shape.
    """
    consumed, produced = _read_kernel(tracer, kernel)
    tracer.mark_role(produced, Role.PRODUCER)
    if groups == 1:
        tracer.mark_role(consumed, Role.CONSUMER)
        tracer.unite(inputs, consumed)
        return produced
    tracer.pin(consumed, "has the same number of inputs in every group")
    rows = produced.reshape(groups, -1)
    tracer.unite(rows, rows[:, :1])
    tracer.unite(inputs.reshape(groups, -1), rows[:, :1])
    return produced


def _transpose_convolve(tracer: Tracer, inputs: Labels, kernel: Value | None) -> Labels:
    produced, consumed = _read_kernel(tracer, kernel)
    tracer.mark_role(produced, Role.PRODUCER)
    tracer.mark_role(consumed, Role.CONSUMER)
    tracer.unite(inputs, consumed)
    return produced


def _convolve_channels(tracer: Tracer, inputs: Labels, kernel: Value | None) -> Labels:
    """Return the labels of the outputs of a depthwise convolution: those of an input are adjacent."""
    channels, copies = _read_kernel(tracer, kernel)
    tracer.pin(copies, "has the same number of outputs for every channel")
    tracer.mark_role(channels, Role.PRODUCER)
    tracer.unite(inputs, channels)
    return np.repeat(channels, len(copies))


def _read_kernel(tracer: Tracer, kernel: Value | None) -> tuple[Labels, Labels]:
    """Return the labels of the last two axes. Positions are always kept."""
    assert kernel is not None
    labels = tracer.get_labels(kernel)
    for array in labels:
        tracer.consume(array)
    first, second = (find_vector(tracer, labels, axis, kernel.shape[axis], POSITIONS) for axis in (-2, -1))
    return first, second


def _place(call: Call, vector: Labels) -> Labels:
    shape = [1] * len(call.output.shape)
    shape[find_channel_axis(call, call.output)] = len(vector)
    return vector.reshape(shape)


def _finish(tracer: Tracer, call: Call, labels: Iterable[Labels], bias: Value | None) -> None:
    rank, channel = len(call.output.shape), find_channel_axis(call, call.output)
    operands = [Operand(call.output.shape, list(labels))]
    if bias is not None:
        operands.append(Operand.from_value(tracer, bias, [channel], rank))
    activate(tracer, call, align(tracer, operands))
