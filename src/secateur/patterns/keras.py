"""How Keras stores weights, and how to get them in and out of selection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from secateur._array import Array
from secateur.errors import LayerError, UnsupportedModelError
from secateur.patterns.base import BasePattern
from secateur.patterns.view import WeightView

__all__ = ["BoundKernel", "KerasBasePattern", "families", "handed_over", "host_array", "kernel", "tensor_of"]

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)

SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)

CONTAINERS = {
    layers.MultiHeadAttention: "has no kernel of its own. Its projections are layers of their own; prune those",
    layers.GroupQueryAttention: "has no kernel of its own. Its projections are layers of their own; prune those",
}
"""Layers whose weights lie in parts → why they are not pruned as one."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundKernel:
    """A kernel without its layer, as a run that was loaded from a file knows it.

    Attributes:
        variable: The kernel.
        view: Where its channels lie.
    """

    variable: Any
    view: WeightView


class KerasBasePattern(BasePattern):
    """The binding of patterns to Keras layers, on every backend.

    Serves ``Dense``, ``EinsumDense``, ``Conv1D/2D/3D`` (grouped too), ``DepthwiseConv1D/2D``,
    ``Conv1D/2D/3DTranspose`` and the pointwise kernel of ``SeparableConv1D/2D``. Selection runs on NumPy arrays, and so
    do the masks that it returns.
    """

    framework: ClassVar[str | None] = "keras"

    def weight_view(self, module: Any) -> WeightView:
        """See `BasePattern.weight_view`."""
        if isinstance(module, BoundKernel):
            return module.view
        if not isinstance(module, keras.layers.Layer):
            raise UnsupportedModelError(
                f"Keras patterns need keras.layers.Layer layers, found {type(module).__name__}."
            )
        shape = tuple(kernel(module).shape)
        if isinstance(module, layers.EinsumDense):
            return _einsum_view(module.equation, shape)
        positions, last = tuple(range(len(shape) - 2)), len(shape) - 1
        if isinstance(module, DEPTHWISE):
            # The output channels of one input channel are neighbours: channel = input · multiplier + copy.
            return WeightView(shape=shape, output_axes=(last - 1, last), kernel_axes=positions, groups=shape[last - 1])
        if isinstance(module, TRANSPOSED):
            return WeightView(shape=shape, output_axes=(last - 1,), kernel_axes=positions, input_axes=(last,))
        groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
        return WeightView(
            shape=shape, output_axes=(last,), kernel_axes=positions, input_axes=(last - 1,), groups=groups
        )

    def weight(self, module: Any) -> Array:
        """The kernel as a NumPy array; write to it through ``layer.kernel.assign``."""
        return self.as_array(kernel(module))

    def weight_id(self, module: Any) -> int:
        """The kernel's identity."""
        return id(kernel(module))

    def as_array(self, value: Any) -> Array:
        """A NumPy array of a tensor, a Keras variable or an array, of the same memory where NumPy can see it."""
        return host_array(value)


def host_array(value: Any) -> npt.NDArray[Any]:
    """A tensor, a Keras variable or an array in NumPy, of the same memory where NumPy can see it.

    What NumPy has no type for, such as bfloat16, becomes float32.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif keras.backend.backend() == "torch":
        held = tensor_of(value).detach().cpu()
        array = (held.float() if keras.backend.standardize_dtype(held.dtype) == "bfloat16" else held).numpy()
    else:
        array = np.asarray(_seen_by_numpy(tensor_of(value)))
    return array.astype("float32") if keras.backend.standardize_dtype(array.dtype) == "bfloat16" else array


def tensor_of(value: Any) -> Any:
    """The backend's tensor of a Keras variable, as it is now, or of anything that makes one."""
    held = value.value if isinstance(value, keras.Variable) else keras.ops.convert_to_tensor(value)
    # TensorFlow hands out its own variable, which changes when it is assigned to.
    return held.read_value() if hasattr(held, "read_value") else held


def handed_over(array: npt.NDArray[Any]) -> Any:
    """What to assign to a variable for a NumPy array that nobody writes into any more.

    Keras has TensorFlow copy it twice. Here it is not copied where its memory is aligned as TensorFlow needs it, and
    once elsewhere. What cannot be written into may be a variable's own memory, and is copied.
    """
    if keras.backend.backend() != "tensorflow" or not array.flags.writeable:
        return array
    import tensorflow as tf

    return tf.raw_ops.Identity(input=array)


def _seen_by_numpy(tensor: Any) -> Any:
    """What NumPy reads without a copy: TensorFlow copies on every way but the buffer protocol."""
    if keras.backend.backend() != "tensorflow":
        return tensor
    try:
        return memoryview(tensor)
    except (BufferError, TypeError, ValueError):  # not in host memory, or a dtype that buffers do not have
        return tensor


def kernel(layer: Any) -> Any:
    """The variable that is pruned in a layer.

    Raises:
        LayerError: There is none; the message says why.
    """
    if isinstance(layer, BoundKernel):
        return layer.variable
    own = type(layer).__name__
    for container, reason in CONTAINERS.items():
        if isinstance(layer, container):
            raise LayerError(f"{own} {reason}")
    if not families(layer):
        raise LayerError(f"{own} is not a type of layer that patterns know")
    if not layer.built:
        raise LayerError("its kernel has no shape before the first batch; build the model first")
    found = layer.pointwise_kernel if isinstance(layer, SEPARABLE) else layer.kernel
    if not isinstance(found, keras.Variable):
        raise LayerError("its kernel is computed from other variables (LoRA, or packed by quantization)")
    if not keras.backend.is_float_dtype(found.dtype):
        raise LayerError(f"its kernel has dtype {found.dtype}; patterns need floating point")
    return found


def families(layer: Any) -> tuple[str, ...]:
    """The names under which configurations may mean a layer's type, the most specific first; empty if unknown."""
    own = type(layer).__name__
    if isinstance(layer, (*CONVOLUTIONS, *DEPTHWISE, *TRANSPOSED, *SEPARABLE)):
        return own, "Conv"
    if isinstance(layer, (layers.Dense, layers.EinsumDense)):
        return own, "Linear"
    return ()


def _einsum_view(equation: str, shape: tuple[int, ...]) -> WeightView:
    """The view of an ``EinsumDense`` kernel.

    A label of the kernel that occurs in the output numbers output channels, in the output's order; any other numbers
    input channels, in the input's order. A label that occurs in input, kernel and output numbers groups, and comes
    first: each group reads inputs of its own.
    """
    operands, output = equation.replace(" ", "").split("->")
    data, labels = operands.split(",")
    kept = [label for label in output if label in labels]
    separate = [label for label in kept if label in data]
    outputs = separate + [label for label in kept if label not in separate]
    sizes = dict(zip(labels, shape, strict=True))
    return WeightView(
        shape=shape,
        output_axes=tuple(labels.index(label) for label in outputs),
        input_axes=tuple(labels.index(label) for label in data if label in labels and label not in output),
        groups=math.prod(sizes[label] for label in separate),
    )
