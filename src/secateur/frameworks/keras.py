"""Find the layers of a Keras model, and read, mask and write their kernels, on every backend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from secateur._array import Array, mask_in_place
from secateur.errors import LayerError, UnsupportedModelError
from secateur.frameworks.base import Framework
from secateur.frameworks.view import WeightView

__all__ = [
    "FRAMEWORK",
    "DetachedKernel",
    "KerasFramework",
    "apply_mask",
    "find_kernel",
    "find_owned_kernels",
    "find_weight_layers",
    "get_kernel",
    "get_matrices",
    "get_tensor",
    "get_type_names",
    "get_view",
    "list_inner_layers",
    "list_layers",
    "make_contiguous",
    "name_variables",
    "read_array",
    "wrap_for_assign",
]

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)

SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)

STRIP = 32
"""Rows that `make_contiguous` transposes at a time, few enough for the cache of a core."""

SEPARATOR = "/"
"""Separates the name of a layer from the name of a layer inside it."""

CONTAINERS = {
    layers.MultiHeadAttention: "has no kernel. Its projections are separate layers; prune those",
    layers.GroupQueryAttention: "has no kernel. Its projections are separate layers; prune those",
}
"""Layers that consist of other layers → why they cannot be pruned themselves."""


@dataclass(frozen=True, slots=True, eq=False)
class DetachedKernel:
    """A kernel without its layer, as in a training run that was loaded from a file.

    Attributes:
        variable: The kernel.
        view: Its canonical view.
    """

    variable: Any
    view: WeightView

    @property
    def kernel(self) -> Any:
        """The kernel, as in a layer."""
        return self.variable

    def get_weights(self) -> list[npt.NDArray[Any]]:
        """Return the values of the kernel, as a layer returns those of its variables."""
        return [read_array(self.variable)]


class KerasFramework(Framework):
    """Interface to Keras layers. Arrays are NumPy arrays with every backend."""

    name = "keras"

    def get_view(self, layer: Any) -> WeightView:
        """See `Framework.get_view`."""
        return get_view(layer)

    def read_weight(self, layer: Any) -> Array:
        """Return the kernel as a NumPy array; to change the kernel, use ``layer.kernel.assign``."""
        return read_array(get_kernel(layer))

    def get_weight_id(self, layer: Any) -> int:
        """Return the identity of the kernel."""
        return id(get_kernel(layer))

    def get_parameter_name(self, name: str, layer: Any) -> str:
        """See `Framework.get_parameter_name`."""
        variable = get_kernel(layer).name
        # A variable that is pruned on its own has its name in that of the layer, perhaps with a number.
        is_own = isinstance(layer, DetachedKernel) and name.rpartition(SEPARATOR)[2].partition("#")[0] == variable
        return name if is_own else f"{name}{SEPARATOR}{variable}"

    def to_array(self, tensor: Any) -> Array:
        """See `read_array`."""
        return read_array(tensor)


FRAMEWORK = KerasFramework()


def list_layers(model: keras.Model) -> dict[str, keras.Layer]:
    """Return every layer inside a model once, by its path, such as ``encoder/attention/query``."""
    named: dict[str, keras.Layer] = {}
    for path, layer in _walk(model, "", {id(model)}):
        unique, count = path, 2
        while unique in named:
            unique, count = f"{path}#{count}", count + 1
        named[unique] = layer
    return named


def _walk(parent: keras.Layer, prefix: str, seen: set[int]) -> Iterator[tuple[str, keras.Layer]]:
    for layer in list_inner_layers(parent):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield prefix + layer.name, layer
            yield from _walk(layer, f"{prefix}{layer.name}{SEPARATOR}", seen)


def list_inner_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Return the layers directly inside a layer."""
    # Keras has no public way to list the layers inside a layer that is not a model.
    children: list[keras.Layer] = layer._flatten_layers(include_self=False, recursive=False)
    return children


def name_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Return every variable of a model by the path of its layer and its own name, such as ``encoder/query/kernel``.

    A variable that several layers own has several names.
    """
    named: dict[str, keras.Variable] = {}
    for path, layer in {"": model, **list_layers(model)}.items():
        inner = {id(variable) for child in list_inner_layers(layer) for variable in child.weights}
        own = [variable for variable in layer.weights if id(variable) not in inner]
        for variable in sorted(own, key=lambda variable: len(variable.shape) < 2):  # as `find_owned_kernels` counts
            first = f"{path}{SEPARATOR}{variable.name}" if path else variable.name
            name, count = first, 2
            while name in named:
                name, count = f"{first}#{count}", count + 1
            named[name] = variable
    return named


def find_weight_layers(model: keras.Model) -> dict[str, keras.Layer]:
    """Return supported layers and others that own a variable with at least two axes, in the order of the model."""
    return {path: layer for path, layer in list_layers(model).items() if get_type_names(layer) or get_matrices(layer)}


def get_matrices(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables with at least two axes that belong to a layer itself, not to a layer inside it."""
    inner = {id(variable) for child in list_inner_layers(layer) for variable in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inner and len(weight.shape) > 1]


def find_owned_kernels(layer: keras.Layer) -> dict[str, DetachedKernel]:
    """Return name → variable for the variables with two or more axes that patterns do not support.

    These are all such variables of unsupported layers, and those of supported layers besides the kernel.
    """
    try:
        get_view(layer)
        kernel = get_kernel(layer)
    except LayerError:
        kernel = None
    found: dict[str, DetachedKernel] = {}
    for variable in get_matrices(layer):
        shape, last = tuple(variable.shape), len(variable.shape) - 1
        if variable is not kernel and math.prod(shape):
            view = WeightView(
                shape=shape, output_axes=(last,), kernel_axes=tuple(range(last - 1)), input_axes=(last - 1,)
            )
            name, count = variable.name, 2
            while name in found:
                name, count = f"{variable.name}#{count}", count + 1
            found[name] = DetachedKernel(variable, view)
    return found


def find_kernel(model: keras.Model, name: str) -> keras.Variable | None:
    """Return the variable that is pruned under the name of a layer or of a variable; ``None`` if there is none."""
    layers_by_name = list_layers(model)
    if name in layers_by_name:
        return get_kernel(layers_by_name[name])
    path, _, variable = name.rpartition(SEPARATOR)
    owned = find_owned_kernels(layers_by_name[path]) if path in layers_by_name else {}
    return owned[variable].variable if variable in owned else None


def get_view(layer: Any) -> WeightView:
    """Return the canonical view of a layer's kernel.

    Supports ``Dense``, ``EinsumDense``, ``Conv1D/2D/3D`` (grouped too), ``DepthwiseConv1D/2D``,
    ``Conv1D/2D/3DTranspose``, and the pointwise kernel of ``SeparableConv1D/2D``.

    Raises:
        LayerError: The layer has no kernel that can be pruned; the message says why.
        UnsupportedModelError: The object is not a Keras layer.
    """
    if isinstance(layer, DetachedKernel):
        return layer.view
    if not isinstance(layer, keras.layers.Layer):
        raise UnsupportedModelError(f"Keras patterns need keras.layers.Layer layers, found {type(layer).__name__}.")
    shape = tuple(get_kernel(layer).shape)
    if isinstance(layer, layers.EinsumDense):
        return _get_einsum_view(layer.equation, shape)
    positions, last = tuple(range(len(shape) - 2)), len(shape) - 1
    if isinstance(layer, DEPTHWISE):
        # The output channels of an input channel are adjacent: channel = input · multiplier + copy.
        return WeightView(shape=shape, output_axes=(last - 1, last), kernel_axes=positions, groups=shape[last - 1])
    if isinstance(layer, TRANSPOSED):
        return WeightView(shape=shape, output_axes=(last - 1,), kernel_axes=positions, input_axes=(last,))
    groups = layer.groups if isinstance(layer, CONVOLUTIONS) else 1
    return WeightView(shape=shape, output_axes=(last,), kernel_axes=positions, input_axes=(last - 1,), groups=groups)


def read_array(value: Any) -> npt.NDArray[Any]:
    """Convert a tensor, a Keras variable or an array to a NumPy array, without a copy if NumPy can access its memory.

    Types that NumPy lacks, such as bfloat16, become float32.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif keras.backend.backend() == "torch":
        tensor = get_tensor(value).detach().cpu()
        array = (tensor.float() if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16" else tensor).numpy()
    else:
        array = np.asarray(_expose_buffer(get_tensor(value)))
    return array.astype("float32") if keras.backend.standardize_dtype(array.dtype) == "bfloat16" else array


def get_tensor(value: Any) -> Any:
    """Return the current values of a Keras variable, or of anything convertible to a tensor, as a backend tensor."""
    tensor = value.value if isinstance(value, keras.Variable) else keras.ops.convert_to_tensor(value)
    # With TensorFlow this is a tf.Variable, whose values change with the next assignment.
    return tensor.read_value() if hasattr(tensor, "read_value") else tensor


def wrap_for_assign(array: npt.NDArray[Any]) -> Any:
    """Wrap a NumPy array so that assigning it to a variable makes few copies. Do not write to the array afterwards.

    With TensorFlow, Keras would copy the array twice. A wrapped array is copied once, or not at all if its memory is
    aligned as TensorFlow requires. Read-only arrays may share the memory of a variable, so they are always copied.
    """
    if keras.backend.backend() != "tensorflow" or not array.flags.writeable:
        return array
    import tensorflow as tf

    return tf.raw_ops.Identity(input=array)


def _expose_buffer(tensor: Any) -> Any:
    """Return an object that NumPy can read without a copy. With TensorFlow, that requires the buffer protocol."""
    if keras.backend.backend() != "tensorflow":
        return tensor
    try:
        return memoryview(tensor)
    except (BufferError, TypeError, ValueError):  # not in host memory, or a dtype that buffers do not support
        return tensor


def apply_mask(variable: keras.Variable, mask: Any) -> None:
    """Set a variable to exactly 0.0 where `mask` is ``False``, even where it is ``nan``."""
    values, keep = get_tensor(variable), get_tensor(mask)
    if keras.backend.backend() == "torch":
        mask_in_place(values.detach(), keep)  # in place, as the optimizers do on torch
    else:
        variable.assign(keras.ops.where(keep, values, keras.ops.zeros((), dtype=values.dtype)))


def make_contiguous(permuted: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy a NumPy array with permuted axes to contiguous memory.

    The canonical view of most kernels is a transposed matrix. These are copied in strips that fit into the cache,
    which takes a tenth of the time that NumPy takes.

    Examples:
        >>> make_contiguous(np.arange(6).reshape(2, 3).T)
        array([[0, 3],
               [1, 4],
               [2, 5]])
    """
    order = np.argsort([-stride for stride in permuted.strides], kind="stable")
    stored = np.transpose(permuted, order)
    split = permuted.ndim - int(order[0])  # how many of the first stored axes have moved to the end
    is_transposed = [*order] == [*np.roll(range(permuted.ndim), split)] and stored.flags.c_contiguous
    if not is_transposed or split == permuted.ndim:
        return np.ascontiguousarray(permuted)
    matrix = stored.reshape(math.prod(stored.shape[:split]), -1)
    transposed = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), STRIP):
        transposed[:, start : start + STRIP] = matrix[start : start + STRIP].T
    return transposed.reshape(permuted.shape)


def get_kernel(layer: Any) -> Any:
    """Return the variable that is pruned in a layer.

    Raises:
        LayerError: No variable can be pruned; the message says why.
    """
    if isinstance(layer, DetachedKernel):
        return layer.variable
    kind = type(layer).__name__
    for container, reason in CONTAINERS.items():
        if isinstance(layer, container):
            raise LayerError(f"{kind} {reason}")
    if not get_type_names(layer):
        raise LayerError(f"{kind} is not a supported layer type")
    if not layer.built:
        raise LayerError("its kernel has no shape before the first batch; build the model first")
    kernel = layer.pointwise_kernel if isinstance(layer, SEPARABLE) else layer.kernel
    if not isinstance(kernel, keras.Variable):
        raise LayerError("its kernel is computed from other variables (LoRA, or packed by quantization)")
    if not keras.backend.is_float_dtype(kernel.dtype):
        raise LayerError(f"its kernel has dtype {kernel.dtype}; patterns need floating point")
    return kernel


def get_type_names(layer: Any) -> tuple[str, ...]:
    """Return the type names by which a configuration can select a layer, most specific first; empty if unsupported."""
    kind = type(layer).__name__
    if isinstance(layer, (*CONVOLUTIONS, *DEPTHWISE, *TRANSPOSED, *SEPARABLE)):
        return kind, "Conv"
    if isinstance(layer, (layers.Dense, layers.EinsumDense)):
        return kind, "Linear"
    return ()


def _get_einsum_view(equation: str, shape: tuple[int, ...]) -> WeightView:
    """Return the view of an ``EinsumDense`` kernel.

    Kernel labels that occur in the output are axes of output channels, in the order of the output. All others are axes
    of input channels, in the order of the input. Labels that occur in input, kernel and output are axes of groups, each
    with its own inputs, and come first.
    """
    operands, output = equation.replace(" ", "").split("->")
    data, labels = operands.split(",")
    output_labels = [label for label in output if label in labels]
    group_labels = [label for label in output_labels if label in data]
    ordered = group_labels + [label for label in output_labels if label not in group_labels]
    sizes = dict(zip(labels, shape, strict=True))
    return WeightView(
        shape=shape,
        output_axes=tuple(labels.index(label) for label in ordered),
        input_axes=tuple(labels.index(label) for label in data if label in labels and label not in output),
        groups=math.prod(sizes[label] for label in group_labels),
    )
