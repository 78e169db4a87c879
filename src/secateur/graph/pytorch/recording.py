"""Record the operations of one eager forward pass, for models that torch.export cannot export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from secateur.graph.program import Program, Value
from secateur.graph.pytorch.calls import add_parameters, make_call

__all__ = ["record_forward"]


def record_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    """Run a model once, and record every operator that it calls.

    Control flow that depends on data is followed as the example inputs take it.
    """
    program = Program()
    known = add_parameters(program, model)
    recorder = _CallRecorder(program)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in known:
            recorder.values[tensor] = known[name]
    inputs = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
    for tensor in inputs:
        recorder.values[tensor] = Value(tuple(tensor.shape))
    with torch.no_grad(), _follow_modules(model, recorder), recorder:
        outputs = model(*args, **kwargs)
    for item in _flatten_outputs(outputs):
        program.outputs.append(recorder.get_value(item))
    return program


def _flatten_outputs(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        return [tensor for item in outputs.values() for tensor in _flatten_outputs(item)]
    if isinstance(outputs, list | tuple):
        return [tensor for item in outputs for tensor in _flatten_outputs(item)]
    return []


class _CallRecorder(TorchDispatchMode):
    """Append each operator call to a program.

    Attributes:
        program: The program.
        values: Tensor → its value. Tensors that are no longer referenced are dropped.
        modules: Names of the modules whose code runs, the innermost last.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.program = program
        self.values: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.modules: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        recorded = tree_map_only(torch.Tensor, self.get_value, (args, kwargs))
        is_static = all(value.is_static for value in tree_flatten(recorded)[0] if isinstance(value, Value))
        outputs: list[Value | None] = []
        for item in results if isinstance(results, list | tuple) else (results,):
            if isinstance(item, torch.Tensor):
                value = Value(tuple(item.shape), is_static=is_static)
                self.values[item] = value
                outputs.append(value)
            else:
                outputs.append(None)
        module = self.modules[-1] if self.modules else ""
        self.program.calls.append(make_call(func, recorded[0], recorded[1], tuple(outputs), module))
        return results

    def get_value(self, tensor: torch.Tensor) -> Value:
        """Return the value of a tensor; one that no recorded operator created is a constant."""
        if tensor not in self.values:
            self.values[tensor] = Value(tuple(tensor.shape), is_static=True)
        value: Value = self.values[tensor]
        return value


@contextmanager
def _follow_modules(model: nn.Module, recorder: _CallRecorder) -> Iterator[None]:
    """Keep track of the modules whose code runs."""
    with ExitStack() as hooks:
        for name, module in model.named_modules():

            def enter(_module: nn.Module, _inputs: Any, name: str = name) -> None:
                recorder.modules.append(name)

            def leave(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
                recorder.modules.pop()

            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield
