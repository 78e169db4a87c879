"""Describe the parameters and the operator calls of a torch model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from secateur.graph.program import Call, Program, Value

__all__ = ["add_parameters", "make_call"]


def add_parameters(program: Program, model: nn.Module) -> dict[str, Value]:
    """Add the parameters and floating-point buffers of a model to a program.

    Returns:
        Name → value, including all names of tied parameters.
    """
    values: dict[str, Value] = {}
    owners: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        owner = owners.setdefault(id(tensor), name)
        if owner == name:
            program.parameters[name] = Value(tuple(tensor.shape), is_static=True)
        else:
            program.aliases[owner] = (*program.aliases.get(owner, ()), name)
        values[name] = program.parameters[owner]
    return values


def make_call(
    operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: tuple[Any, ...], module: str
) -> Call:
    """Describe the call of an operator, with its arguments by name and its defaults."""
    schema = getattr(operator, "_schema", None)
    if schema is None:
        name, arguments = str(operator), {**{str(number): item for number, item in enumerate(args)}, **kwargs}
    else:
        name = schema.name.replace("::", ".")
        arguments = {item.name: item.default_value for item in schema.arguments if item.has_default_value()}
        arguments |= {item.name: value for item, value in zip(schema.arguments, args, strict=False)} | dict(kwargs)
    tensors = tuple(item if isinstance(item, Value) else None for item in outputs)
    return Call(operation=_drop_suffix(name), arguments=arguments, outputs=tensors, module=module)


def _drop_suffix(name: str) -> str:
    """Remove the underscore of operations in place, which do not change the shape of what they write into."""
    return name[:-1] if name.startswith("aten.") and name.endswith("_") and not name.endswith("__") else name
