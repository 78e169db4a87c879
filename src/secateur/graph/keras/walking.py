"""Read the operations of a Keras model from its functional graph."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from secateur.errors import CalibrationError
from secateur.frameworks.keras import list_layers, name_variables
from secateur.graph.program import Call, Program, Value, iterate_values

__all__ = ["SymbolicTensor", "find_function", "read_graph"]

PUBLIC_NAMES = {
    "batch_norm": "batch_normalization",
    "layer_norm": "layer_normalization",
    "rmsnorm": "rms_normalization",
    "rms_norm": "rms_normalization",
}
"""Names of classes of operations → those of their functions in ``keras.ops``, where these differ."""


@dataclass(frozen=True, slots=True)
class SymbolicTensor:
    """A tensor of the graph with known sizes.

    Attributes:
        spec: Its shape and type, for Keras.
        value: The same tensor in the program.
    """

    spec: keras.KerasTensor
    value: Value

    @classmethod
    def from_shape(cls, shape: Sequence[int], dtype: str) -> SymbolicTensor:
        """Create a tensor that is not static."""
        return cls(keras.KerasTensor(tuple(shape), dtype=dtype), Value(tuple(shape)))


def find_function(model: keras.Model) -> keras.Function | None:
    """Return the graph of a Sequential or functional model; ``None`` if its call method is code.

    Examples:
        >>> find_function(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])) is None
        False
    """
    function = getattr(model, "_functional", model)  # Keras has no public way to the graph of a Sequential model
    is_graph = isinstance(function, keras.Function) and type(model).call.__module__.startswith("keras.")
    return function if is_graph else None


def read_graph(model: keras.Model, inputs: Sequence[SymbolicTensor]) -> Program:
    """List the operations of a model, with those of the models inside it.

    Args:
        model: The model.
        inputs: Its inputs, flattened.

    Raises:
        CalibrationError: A layer does not accept tensors of these sizes.
    """
    program = Program()
    walker = _GraphWalker(program, model)
    function = find_function(model)
    if function is None:
        walker.add_barrier(model, "")
    else:
        program.outputs = [tensor.value for tensor in walker.run(function, inputs, "")]
    return program


class _GraphWalker:
    """Walk through the graph of a model and those of the models inside it, and append the calls to a program."""

    def __init__(self, program: Program, model: keras.Model) -> None:
        self.program = program
        self.paths = {id(layer): path for path, layer in list_layers(model).items()} | {id(model): ""}
        self.names: dict[int, str] = {}
        self.values: dict[int, Value] = {}
        for name, variable in name_variables(model).items():
            owner = self.names.setdefault(id(variable), name)
            if owner != name:
                program.aliases[owner] = (*program.aliases.get(owner, ()), name)
                continue
            value = self.values[id(variable)] = Value(tuple(variable.shape), is_static=True)
            if keras.backend.is_float_dtype(variable.dtype):
                program.parameters[name] = value

    def run(self, function: keras.Function, inputs: Sequence[SymbolicTensor], path: str) -> list[SymbolicTensor]:
        """Append the calls of a graph, and return its outputs."""
        known = {id(tensor): given for tensor, given in zip(function.inputs, inputs, strict=True)}

        def find(item: Any) -> Any:
            return known.get(id(item), item)

        for node in _list_nodes(function):
            if any(id(tensor) not in known for tensor in node.input_tensors):
                continue  # Keras skips these too: nothing that the model returns depends on them
            args, kwargs = keras.tree.map_structure(find, (node.arguments.args, node.arguments.kwargs))
            results = self.follow(node.operation, args, kwargs, path)
            known.update({id(tensor): result for tensor, result in zip(node.outputs, results, strict=True)})
        return [known[id(tensor)] for tensor in function.outputs]

    def follow(
        self, operation: keras.Operation, args: Sequence[Any], kwargs: Mapping[str, Any], path: str
    ) -> list[SymbolicTensor]:
        """Append the calls of one layer, model or operation, and return its outputs."""
        if isinstance(operation, keras.Model) and (function := find_function(operation)) is not None:
            inputs = _arrange_inputs(function, args[0] if args else kwargs.get("inputs"))
            if inputs is not None:
                path = self.paths[id(operation)]
                return self.run(function, self.enter(operation, inputs, path), path)
        module = self.paths.get(id(operation), path)
        arguments = {"operation": operation, "weights": self.describe_weights(operation, module)}
        arguments |= keras.tree.map_structure(self.find_value, _bind(operation, args, kwargs))
        arguments["constants"] = dict(self.find_constants(operation))
        is_static = all(value.is_static for value in iterate_values(arguments))
        specs = _compute_specs(operation, args, kwargs, module)
        outputs = [SymbolicTensor(spec, Value(tuple(spec.shape), is_static=is_static)) for spec in specs]
        values = tuple(output.value for output in outputs)
        self.program.calls.append(
            Call(operation=name_operation(operation), arguments=arguments, outputs=values, module=module)
        )
        return outputs

    def enter(self, model: keras.Model, inputs: Sequence[SymbolicTensor], path: str) -> list[SymbolicTensor]:
        """Append a call for the input layers of a model inside another, and return the tensors that they pass on."""
        passed = [SymbolicTensor(item.spec, Value(item.value.shape, item.value.is_static)) for item in inputs]
        self.program.calls.append(
            Call(
                operation="keras.InputLayer",
                arguments={"operation": model, "weights": {}, "inputs": [item.value for item in inputs]},
                outputs=tuple(item.value for item in passed),
                module=path,
            )
        )
        return passed

    def add_barrier(self, layer: keras.Layer, path: str) -> None:
        """Append a call that uses all weights of a layer whose inputs are not known."""
        arguments = {"operation": layer, "weights": self.describe_weights(layer, path)}
        self.program.calls.append(Call(operation=name_operation(layer), arguments=arguments, outputs=(), module=path))

    def describe_weights(self, operation: keras.Operation, path: str) -> dict[str, Value]:
        """Return the variables of a layer by their names in it."""
        variables = operation.weights if isinstance(operation, keras.Layer) else []
        names = ((self.names[id(variable)].removeprefix(f"{path}/"), variable) for variable in variables)
        return {name: self.values[id(variable)] for name, variable in names}

    def find_value(self, item: Any) -> Any:
        """Return the value of a tensor or a variable, and other arguments unchanged."""
        if isinstance(item, SymbolicTensor):
            return item.value
        if id(item) in self.values:
            return self.values[id(item)]
        shape = getattr(item, "shape", None)
        return Value(tuple(map(int, shape)), is_static=True) if shape else item

    def find_constants(self, operation: keras.Operation) -> Iterator[tuple[str, Value]]:
        """Yield the tensors among the settings of an operation of ``keras.ops``, such as the bounds of a clip."""
        if not isinstance(operation, keras.Layer):
            for name, item in vars(operation).items():
                value = self.find_value(item)
                if isinstance(value, Value):
                    yield name, value


def name_operation(operation: keras.Operation) -> str:
    """Return the name under which a rule for an operation is registered.

    Examples:
        >>> name_operation(keras.layers.ReLU())
        'keras.ReLU'
    """
    kind = type(operation)
    if isinstance(operation, keras.Model):
        return "keras.Model"
    if kind.__module__.startswith("keras.src.ops."):
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()
        return f"keras.ops.{PUBLIC_NAMES.get(name, name)}"
    return f"keras.{kind.__name__}" if kind.__module__.startswith("keras.") else f"{kind.__module__}.{kind.__name__}"


def _list_nodes(function: keras.Function) -> Iterator[Any]:
    """Yield the calls of a graph in an order in which they can run, without its inputs."""
    nodes = function._nodes_by_depth  # Keras has no public way to list them
    for depth in sorted(nodes, reverse=True):
        yield from (node for node in nodes[depth] if node.operation is not None and not node.is_input)


def _bind(operation: keras.Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    try:
        bound = inspect.signature(operation.call).bind(*args, **kwargs)
    except TypeError:
        return {**{str(number): item for number, item in enumerate(args)}, **kwargs}
    return dict(bound.arguments)


def _arrange_inputs(function: keras.Function, inputs: Any) -> list[SymbolicTensor] | None:
    """Return the inputs of an inner model in the order that it expects; ``None`` if it reshapes them."""
    if isinstance(inputs, Mapping) and all(tensor.name in inputs for tensor in function.inputs):
        flat = [inputs[tensor.name] for tensor in function.inputs]
    else:
        flat = keras.tree.flatten(inputs)
    ranks = [len(item.spec.shape) if isinstance(item, SymbolicTensor) else None for item in flat]
    return flat if ranks == [len(tensor.shape) for tensor in function.inputs] else None


def _compute_specs(
    operation: keras.Operation, args: Sequence[Any], kwargs: Mapping[str, Any], module: str
) -> list[keras.KerasTensor]:
    def get_spec(item: Any) -> Any:
        return item.spec if isinstance(item, SymbolicTensor) else item

    positional, named = keras.tree.map_structure(get_spec, (tuple(args), dict(kwargs)))
    try:
        specs: list[keras.KerasTensor] = keras.tree.flatten(operation.compute_output_spec(*positional, **named))
    except Exception as error:
        shapes = [item.spec.shape for item in keras.tree.flatten((args, kwargs)) if isinstance(item, SymbolicTensor)]
        raise CalibrationError(
            f"{module or operation.name!r} must accept its inputs, but with shapes {shapes} it raised "
            f"{type(error).__name__}: {error}. Pass example inputs of sizes that the model accepts."
        ) from error
    return specs
