"""Rebuild a Keras model with other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

from secateur.errors import LayerError
from secateur.frameworks.keras import CONVOLUTIONS, SEPARABLE, TRANSPOSED, list_layers, name_variables, read_array
from secateur.graph.keras.walking import find_function
from secateur.slimming.keras.code_sizes import CodeSizes, Rebuilt, copy_operation, summarize_error
from secateur.slimming.keras.weights import cut_array
from secateur.slimming.removal import Removal

__all__ = ["Attributes", "rebuild_model"]

Shape = tuple[int, ...]
Attributes = dict[str, dict[str, int | Shape]]
"""Path of a layer → settings that changed, and their new values."""


def rebuild_model(model: keras.Model, removal: Removal, sizes: CodeSizes) -> tuple[keras.Model, Attributes]:
    """Build a model without the removed units, with the weights of the others.

    Args:
        model: A Sequential or functional model. It is not changed.
        removal: The units to remove.
        sizes: The numbers in its operations.

    Returns:
        The new model, which is not compiled, and the settings of its layers that changed.

    Raises:
        LayerError: A layer cannot be rebuilt, or its weights would not fit the kept units.
    """
    arrays = {name: cut_array(read_array(item), name, removal) for name, item in name_variables(model).items()}
    rebuilder = _Rebuilder(model, {name: array.shape for name, array in arrays.items()}, sizes)
    try:
        rebuilt = rebuilder.rebuild(model)
    except LayerError:
        raise
    except Exception as error:
        raise LayerError(f"the model cannot be rebuilt with these sizes: {summarize_error(error)}") from error
    _load_weights(rebuilt, arrays)
    return rebuilt, rebuilder.attributes


def _load_weights(model: keras.Model, arrays: Mapping[str, Any]) -> None:
    variables = name_variables(model)
    if variables.keys() != arrays.keys():
        different = sorted(variables.keys() ^ arrays.keys())
        raise LayerError(f"the weights of the rebuilt model have other names: {', '.join(different)}")
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise LayerError(
                f"{name!r} would have shape {tuple(variable.shape)} in the rebuilt model, but the kept units need "
                f"{arrays[name].shape}. No setting of its layer describes this"
            )
        variable.assign(arrays[name])


class _Rebuilder:
    """Rebuilds layers and models."""

    def __init__(self, model: keras.Model, shapes: Mapping[str, Shape], sizes: CodeSizes) -> None:
        self._paths = {id(layer): path for path, layer in list_layers(model).items()}
        self._shapes, self._sizes = shapes, sizes
        self._created: dict[int, Rebuilt] = {}
        self.attributes: Attributes = {}

    def rebuild(self, model: keras.Model) -> keras.Model:
        """Return a new model of the same kind, which is not compiled."""
        shapes = self._sizes.find_input_shapes(model)
        inputs = [
            keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)
            for shape, tensor in zip(shapes, model.inputs, strict=True)
        ]
        if isinstance(model, keras.Sequential):
            return keras.Sequential([*inputs, *map(self.create, model.layers)], name=model.name)
        plain = keras.Model(model.input, model.output, name=model.name)
        tensors = keras.tree.pack_sequence_as(model.input, inputs)
        return keras.models.clone_model(plain, input_tensors=tensors, clone_function=self.create)

    def create(self, operation: keras.Operation) -> Rebuilt:
        """Return a new layer, model or operation with the new sizes, once for each old one."""
        if id(operation) not in self._created:
            self._created[id(operation)] = self._create(operation)
        return self._created[id(operation)]

    def _create(self, operation: keras.Operation) -> Rebuilt:
        if isinstance(operation, keras.Model) and find_function(operation) is not None:
            return self.rebuild(operation)
        if not isinstance(operation, keras.Layer):
            return self._sizes.rebuild_operation(operation)
        if isinstance(operation, layers.Lambda):
            return _copy_lambda(operation)
        path = f"{self._paths[id(operation)]}/"
        shapes = {name.removeprefix(path): shape for name, shape in self._shapes.items() if name.startswith(path)}
        config = operation.get_config()
        before = dict(config)
        _update_config(operation, config, shapes)
        self._sizes.update_layer(operation, config)
        changed = {key: config[key] for key in config if _simplify(config[key]) != _simplify(before.get(key))}
        if not changed:
            return copy_operation(operation)
        self.attributes[path[:-1]] = {key: _simplify(value) for key, value in changed.items()}
        return copy_operation(operation, config)


def _simplify(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _copy_lambda(layer: keras.layers.Lambda) -> keras.layers.Lambda:
    """Recreate a layer with the same Python function, which its configuration stores only as code."""
    shape = layer._output_shape
    return layers.Lambda(layer.function, shape, arguments=layer.arguments, name=layer.name, dtype=layer.dtype_policy)


def _update_config(layer: keras.Layer, config: dict[str, Any], shapes: Mapping[str, Shape]) -> None:
    """Write the sizes that follow from the shapes of a layer's weights into its configuration."""
    if isinstance(layer, layers.MultiHeadAttention):
        _, heads, size = shapes["query/kernel"]
        output = shapes["attention_output/kernel"][2:]
        config |= {"num_heads": heads, "key_dim": size, "value_dim": shapes["value/kernel"][2]}
        if layer._output_shape is not None or output != shapes["query/kernel"][:1]:
            config["output_shape"] = output
    elif isinstance(layer, layers.GroupQueryAttention):
        _, heads, size = shapes["query/kernel"]
        config |= {"num_query_heads": heads, "num_key_value_heads": shapes["key/kernel"][1], "head_dim": size}
    elif isinstance(layer, layers.EinsumDense):
        config["output_shape"] = _update_output_shape(layer, shapes["kernel"])
    elif isinstance(layer, layers.Dense):
        config["units"] = shapes["kernel"][-1]
    elif isinstance(layer, SEPARABLE):
        config["filters"] = shapes["pointwise_kernel"][-1]
    elif isinstance(layer, TRANSPOSED):
        config["filters"] = shapes["kernel"][-2]
    elif isinstance(layer, CONVOLUTIONS):
        config["filters"] = shapes["kernel"][-1]
        config["groups"] = layer.groups * shapes["kernel"][-1] // layer.filters if layer.groups > 1 else 1
    elif isinstance(layer, layers.Embedding):
        config["output_dim"] = shapes["embeddings"][-1]


def _update_output_shape(layer: keras.layers.EinsumDense, kernel: Shape) -> tuple[int | None, ...]:
    """Return the shape of the output without the batch axis, whose letters also occur in the kernel."""
    operands, output = layer.equation.replace(" ", "").split("->")
    sizes = dict(zip(operands.split(",")[1], kernel, strict=True))
    letters = output.replace("...", "")[-len(layer.partial_output_shape) :]
    pairs = zip(letters, layer.partial_output_shape, strict=True)
    return tuple(None if size is None else sizes.get(letter, size) for letter, size in pairs)
