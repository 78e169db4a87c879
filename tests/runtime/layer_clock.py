"""Compile models on a fake clock that controls the time of each layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from secateur.runtime import CompileResult
from secateur.runtime.pytorch import compile_model

__all__ = ["compile_on_clock", "observe_calls"]


@contextmanager
def observe_calls(observe: Callable[[nn.Module, Any, bool], Any]) -> Iterator[None]:
    """Observe the calls of all modules inside a ``with`` block.

    Args:
        observe: Takes a module, its outputs, and whether it is called in isolation rather than inside another module.
            Its return value replaces the outputs, unless it is ``None``.
    """
    depth = 0

    def start(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def end(module: nn.Module, _: Any, outputs: Any) -> Any:
        nonlocal depth
        depth -= 1
        return None if outputs is None else observe(module, outputs, depth == 0)

    # Always, so that the depth is right after an exception in a module.
    hooks = register_module_forward_pre_hook(start), register_module_forward_hook(end, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def compile_on_clock(
    model: nn.Module, inputs: Any, count_seconds: Callable[[nn.Module, bool], float], **options: bool
) -> CompileResult:
    """Compile a model on a clock that only advances while modules run.

    Args:
        model: The model.
        inputs: The example inputs.
        count_seconds: Returns the seconds that a module takes in addition to its submodules. It takes the module, and
            whether it is called in isolation rather than inside the model.
        options: The options of `secateur.runtime.compile`.
    """
    now = 0.0

    def advance(module: nn.Module, _: Any, is_alone: bool) -> None:
        nonlocal now
        now += count_seconds(module, is_alone)

    with observe_calls(advance):
        return CompileResult(model, compile_model(model, inputs, clock=lambda: now, **options))
