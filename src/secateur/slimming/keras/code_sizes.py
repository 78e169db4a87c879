"""Find the numbers in the operations of a Keras model that depend on the number of units."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from secateur.errors import LayerError
from secateur.graph import Role
from secateur.graph.labels import FIXED
from secateur.graph.program import Call, Program, Value
from secateur.graph.tracer import Tracer
from secateur.slimming.removal import Flags, Removal

__all__ = ["CodeSizes", "Rebuilt", "copy_operation", "summarize_error"]

MAX_LENGTH = 300
"""Maximum length of a quoted Keras error, in characters."""

Rebuilt: TypeAlias = Any
"""A layer, an operation, or a function that is called in its place."""


class CodeSizes:
    """The numbers in a model after a removal, such as the shape of a reshape.

    Args:
        program: The operations of the model.
        tracer: The labels of all tensors in it.
        removal: The units to remove.
    """

    def __init__(self, program: Program, tracer: Tracer, removal: Removal) -> None:
        self._tracer = tracer
        self._calls: dict[int, list[Call]] = {}
        for call in program.calls:
            self._calls.setdefault(id(call["operation"]), []).append(call)
        self._stays = np.ones(tracer.count, dtype=bool)
        removed = removal.list_removed(frozenset(Role))
        for axis in tracer.axes:
            indices = removed.get((axis.parameter, axis.axis))
            if indices is not None:
                self._stays[axis.first + indices] = False

    def update_layer(self, layer: keras.Layer, config: dict[str, Any]) -> None:
        """Write the new sizes that no weight of the layer has into its configuration.

        Raises:
            LayerError: The layer is called several times, and needs different sizes.
        """
        calls = self._calls.get(id(layer), [])
        if isinstance(layer, keras.layers.Reshape):
            shapes = {self._shrink(call.output, (-1, *layer.target_shape))[1:] for call in calls}
            _set_only(layer, config, "target_shape", shapes)
        elif isinstance(layer, keras.layers.GroupNormalization):
            kept = [self.find_kept(call["inputs"], layer.axis) for call in calls]
            _set_only(layer, config, "groups", {int(flags.sum()) * layer.groups // len(flags) for flags in kept})

    def find_input_shapes(self, model: keras.Model) -> list[tuple[int | None, ...]]:
        """Return the shapes that a model inside another accepts; those of the outermost model stay.

        Raises:
            LayerError: The model is called several times, with different sizes.
        """
        declared = [tuple(tensor.shape) for tensor in model.inputs]
        found = {tuple(map(self._shrink, call.outputs, declared)) for call in self._calls.get(id(model), [])}
        if len(found) > 1:
            raise LayerError(f"{model.name!r} is called several times, with inputs of different sizes")
        return [tuple(None if size == -1 else size for size in shape) for shape in found.pop()] if found else declared

    def rebuild_operation(self, operation: keras.Operation) -> Rebuilt:
        """Return a ``keras.ops`` operation with the new numbers, to be called with the old arguments."""
        for call in self._calls.get(id(operation), []):
            if call.operation in REBUILDERS:
                return REBUILDERS[call.operation](self, call)
        return copy_operation(operation)

    def find_kept(self, value: Value, axis: int) -> Flags:
        """Return which indices of a tensor are kept along one axis."""
        for labels in self._tracer.get_labels(value):
            if labels.shape[axis] > 1:
                along = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
                flags: Flags = np.any((along == FIXED) | self._stays[along], axis=1)
                return flags
        return np.ones(value.shape[axis], dtype=bool)

    def _shrink(self, value: Value | None, shape: Sequence[int | None]) -> tuple[int, ...]:
        """Return the new shape of a tensor; sizes that are open stay open."""
        assert value is not None
        sizes = enumerate(shape)
        return tuple(-1 if size in (-1, None) else int(self.find_kept(value, axis).sum()) for axis, size in sizes)

    def rebuild_reshape(self, call: Call) -> Rebuilt:
        """Return a reshape to the new shape."""
        operation, shape = call["operation"], call["operation"].newshape
        sizes = (shape,) if isinstance(shape, int) else shape
        return type(operation)(self._shrink(call.output, sizes), name=operation.name)

    def rebuild_broadcast(self, call: Call) -> Rebuilt:
        """Return a broadcast to the new shape."""
        operation = call["operation"]
        return type(operation)(self._shrink(call.output, operation.shape), name=operation.name)

    def rebuild_split(self, call: Call) -> Rebuilt:
        """Return a split at the new places."""
        operation, places = call["operation"], call["operation"].indices_or_sections
        if not isinstance(places, int):
            kept = self.find_kept(call["x"], operation.axis % len(call["x"].shape))
            places = [int(kept[:place].sum()) for place in places]
        return type(operation)(places, axis=operation.axis, name=operation.name)

    def rebuild_slice(self, call: Call) -> Rebuilt:
        """Return a slice of the new range."""
        operation, value = call["operation"], call["inputs"]
        starts, sizes = [], []
        for axis, (start, size) in enumerate(zip(call["start_indices"], operation.shape, strict=True)):
            kept = self.find_kept(value, axis)
            starts.append(int(kept[:start].sum()))
            sizes.append(-1 if size == -1 else int(kept[start : start + size].sum()))
        rebuilt = type(operation)(tuple(sizes), name=operation.name)
        return lambda inputs, start_indices: rebuilt(inputs, tuple(starts))  # noqa: ARG005 - the old ones

    def rebuild_get_item(self, call: Call) -> Rebuilt:
        """Return indexing with the new ranges."""
        key, value = call["key"], call["x"]
        keys = list(key) if isinstance(key, list | tuple) else [key]
        left = len(value.shape) - sum(item is not None and item is not ... for item in keys)
        axis, new = 0, []
        for item in keys:
            new.append(self._move_range(item, value, axis) if isinstance(item, slice) else item)
            axis += left if item is ... else item is not None
        rebuilt = copy_operation(call["operation"])
        return lambda x, key: rebuilt(x, tuple(new))  # noqa: ARG005 - the old one

    def _move_range(self, part: slice, value: Value, axis: int) -> slice:
        kept = self.find_kept(value, axis)
        if kept.all():
            return part
        start, stop, step = part.indices(len(kept))
        return slice(int(kept[:start].sum()), int(kept[:stop].sum()), step)


def _set_only(layer: keras.Layer, config: dict[str, Any], name: str, values: set[Any]) -> None:
    if len(values) > 1:
        raise LayerError(f"{layer.name!r} is called several times, and would need {name} to be {sorted(values)}")
    if values:
        config[name] = values.pop()


REBUILDERS: dict[str, Callable[[CodeSizes, Call], Rebuilt]] = {
    "keras.ops.reshape": CodeSizes.rebuild_reshape,
    "keras.ops.broadcast_to": CodeSizes.rebuild_broadcast,
    "keras.ops.split": CodeSizes.rebuild_split,
    "keras.ops.array_split": CodeSizes.rebuild_split,
    "keras.ops.slice": CodeSizes.rebuild_slice,
    "keras.ops.get_item": CodeSizes.rebuild_get_item,
}
"""Operation with sizes among its settings → how to create it with new ones."""


def copy_operation(operation: keras.Operation, config: dict[str, Any] | None = None) -> keras.Operation:
    """Recreate an operation or a layer from its configuration, or from a changed one.

    Raises:
        LayerError: Its configuration does not describe it.
    """
    try:
        config = operation.get_config() if config is None else config
        if "activation" in config:  # functions that are not registered cannot be found by their name
            config["activation"] = operation.activation
        created = type(operation).from_config(config)
    except Exception as error:
        raise LayerError(
            f"{operation.name!r} cannot be recreated from its configuration: {summarize_error(error)} "
            f"Write get_config and from_config, and register functions and classes with "
            f"keras.saving.register_keras_serializable."
        ) from error
    created.name = operation.name
    return created


def summarize_error(error: BaseException | None) -> str:
    """Return the type and the first part of the message of an error, without colors, on one line."""
    text = re.sub(r"\x1b\[\d+m", "", f"{type(error).__name__}: {error}")
    return " ".join(text.split())[:MAX_LENGTH]
