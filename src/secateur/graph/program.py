"""The calls of a model's forward pass, in the form that all front ends record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "Program", "Value", "iterate_values"]


@dataclass(slots=True, eq=False)
class Value:
    """A tensor in a program.

    Attributes:
        shape: Its shape with the example inputs.
        is_static: Whether it is computed from parameters and constants alone.
    """

    shape: tuple[int, ...]
    is_static: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One operation.

    Attributes:
        operation: Its name, such as ``"aten.linear"``.
        arguments: Name of the argument → its value; tensors are `Value` objects, alone or in lists.
        outputs: The tensors that it returns; ``None`` in place of results that are not tensors.
        module: Name of the module whose code contains the call; empty for the model itself.
    """

    operation: str
    arguments: Mapping[str, Any]
    outputs: tuple[Value | None, ...]
    module: str

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or a default if the operation has no such argument."""
        return self.arguments.get(name, default)

    @property
    def inputs(self) -> list[Value]:
        """All tensors among the arguments."""
        return list(iterate_values(self.arguments))

    @property
    def output(self) -> Value:
        """The only tensor that it returns, or the first."""
        value = self.outputs[0]
        assert value is not None
        return value


@dataclass(slots=True, kw_only=True)
class Program:
    """All operations of a forward pass.

    Attributes:
        parameters: Name of each parameter and floating-point buffer → its value.
        aliases: Name of a parameter → its other names, if it is tied.
        outputs: What the model returns.
        calls: The operations, in the order of their execution.
    """

    parameters: dict[str, Value] = field(default_factory=dict)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


def iterate_values(tree: Any) -> Iterator[Value]:
    """Yield the tensors in nested lists, tuples and mappings."""
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from iterate_values(item)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from iterate_values(item)
