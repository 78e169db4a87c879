"""Record the operations of a torch model with torch.export."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from secateur.graph.program import Program, Value, iterate_values
from secateur.graph.pytorch.calls import add_parameters, make_call

__all__ = ["read_exported"]


def read_exported(model: nn.Module, exported: ExportedProgram) -> Program:
    """Convert an exported program.

    Args:
        model: The model that was exported; its parameters have the names that the result uses.
        exported: The result of `torch.export.export`.
    """
    program = Program()
    values = add_parameters(program, model)
    inputs: list[Value | None] = []
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    for spec, node in zip(exported.graph_signature.input_specs, placeholders, strict=True):
        is_state = spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
        known = values.get(spec.target or "") if is_state else None
        inputs.append(known or _make_value(node, is_static=spec.kind is not InputKind.USER_INPUT))
    results = _Interpreter(program).run(exported.graph_module, inputs, "")
    program.outputs = list(iterate_values(results))
    return program


class _Interpreter:
    """Walk through a graph of nodes, and those inside it, and append their calls to a program."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def run(self, graph: fx.GraphModule, inputs: list[Any], module: str) -> Any:
        """Append the calls of a graph, and return its outputs."""
        values: dict[fx.Node, Any] = {}
        arguments = iter(inputs)
        *nodes, end = graph.graph.nodes
        for node in nodes:
            if node.op == "placeholder":
                values[node] = next(arguments)
            elif node.op == "get_attr":
                attribute = _get_attribute(graph, node.target)
                is_tensor = isinstance(attribute, torch.Tensor)
                values[node] = Value(tuple(attribute.shape), is_static=True) if is_tensor else attribute
            else:
                args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                values[node] = self.follow(node, args, kwargs, _get_module(node, module))
        return fx.node.map_arg(end.args[0], values.__getitem__)

    def follow(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], module: str) -> Any:
        """Append one node, and return its outputs."""
        if node.target is operator.getitem:
            return args[0][args[1]]
        inner = [number for number, item in enumerate(args) if isinstance(item, fx.GraphModule)]
        if len(inner) == 1 and isinstance(node.target, torch._ops.HigherOrderOperator):
            return self.run(args[inner[0]], list(args[inner[0] + 1 :]), module)
        is_static = all(value.is_static for value in iterate_values((args, kwargs)))
        outputs = fx.node.map_aggregate(node.meta.get("val"), lambda item: _describe(item, is_static=is_static))
        flat = outputs if isinstance(outputs, list | tuple) else (outputs,)
        self.program.calls.append(make_call(node.target, args, kwargs, tuple(flat), module))
        return outputs


def _get_module(node: fx.Node, outer: str) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else outer


def _get_attribute(graph: fx.GraphModule, target: Any) -> Any:
    found: Any = graph
    for name in str(target).split("."):
        found = getattr(found, name)
    return found


def _make_value(node: fx.Node, *, is_static: bool) -> Value | Any:
    return _describe(node.meta.get("val"), is_static=is_static)


def _describe(item: Any, *, is_static: bool) -> Any:
    if isinstance(item, torch.Tensor):
        return Value(tuple(int(size) for size in item.shape), is_static=is_static)
    return item
