"""Build the dependency graph of a Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from secateur.errors import CalibrationError, UnsupportedModelError
from secateur.frameworks.keras import SEPARATOR
from secateur.graph.graph import Graph
from secateur.graph.grouping import build_graph
from secateur.graph.keras import rules
from secateur.graph.keras.walking import SymbolicTensor, find_function, read_graph
from secateur.graph.program import Program
from secateur.graph.rules import run_rules

__all__ = ["record", "trace"]

BATCH_SIZE = 2
"""Examples per batch where the model leaves their number open."""

OPEN_SIZE = 64
"""Size of other axes that the model leaves open, such as a sequence; great enough for models that halve images."""

assert rules.__all__, "importing the package registers the rules"


def trace(model: keras.Model, example_inputs: Any = None) -> Graph:
    """See `secateur.graph.trace`."""
    program = record(model, example_inputs)
    return build_graph(run_rules(program), program.aliases, separator=SEPARATOR)


def record(model: keras.Model, example_inputs: Any = None) -> Program:
    """Read the operations of a model from its graph.

    Args:
        model: The model. It is not changed, and does not run.
        example_inputs: One batch, whose sizes are used; ``None``: the sizes that the model declares.
    """
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(f"The model must be a keras.Model, found the layer {type(model).__name__}.")
    if not model.built:
        raise UnsupportedModelError("The model must be built. Call model.build with the shape of its inputs first.")
    function = find_function(model)
    return read_graph(model, [] if function is None else _make_inputs(function, example_inputs))


def _make_inputs(function: keras.Function, example_inputs: Any) -> list[SymbolicTensor]:
    declared = [tuple(tensor.shape) for tensor in function.inputs]
    if example_inputs is None:
        shapes = [_fill_open_sizes(shape) for shape in declared]
    else:
        if isinstance(example_inputs, Mapping) and all(tensor.name in example_inputs for tensor in function.inputs):
            example_inputs = [example_inputs[tensor.name] for tensor in function.inputs]
        shapes = [tuple(map(int, item.shape)) for item in keras.tree.flatten(example_inputs)]
    if len(shapes) != len(declared) or not all(map(_fits, shapes, declared)):
        raise CalibrationError(
            f"The model must accept the example inputs. Its inputs have the shapes {declared}, found {shapes}. "
            f"Pass one batch, or None."
        )
    return [
        SymbolicTensor.from_shape(shape, tensor.dtype) for shape, tensor in zip(shapes, function.inputs, strict=True)
    ]


def _fill_open_sizes(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    defaults = (OPEN_SIZE if axis else BATCH_SIZE for axis in range(len(shape)))
    return tuple(default if size is None else size for size, default in zip(shape, defaults, strict=True))


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(
        size == expected or expected is None for size, expected in zip(shape, declared, strict=True)
    )
