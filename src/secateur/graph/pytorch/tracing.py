"""Build the dependency graph of a torch model."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import nn

from secateur.errors import CalibrationError, UnsupportedModelError
from secateur.frameworks.pytorch import unwrap_model
from secateur.graph.graph import Graph
from secateur.graph.grouping import build_graph
from secateur.graph.orders import FreeOrder, list_free_orders
from secateur.graph.program import Program
from secateur.graph.pytorch import rules
from secateur.graph.pytorch.export import read_exported
from secateur.graph.pytorch.recording import record_forward
from secateur.graph.rules import run_rules

__all__ = ["record", "split_inputs", "trace", "trace_orders", "trace_program"]

logger = logging.getLogger(__name__)

EXPORT_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch._export")

HEAD_SIZE = "torch.nn.MultiheadAttention computes the size of its heads from embed_dim, the size of its inputs"
"""Why its heads can be set to zero, but not removed."""

assert rules.__all__, "importing the package registers the rules"


def trace(model: nn.Module, example_inputs: Any) -> Graph:
    """See `secateur.graph.trace`."""
    model = unwrap_model(model)
    return trace_program(model, record(model, example_inputs))


def trace_program(model: nn.Module, program: Program) -> Graph:
    """Build the graph of a model whose operations are recorded."""
    tracer = run_rules(program)
    for name, module in model.named_modules():
        weight = program.parameters.get(f"{name}.in_proj_weight".lstrip("."))
        if isinstance(module, nn.MultiheadAttention) and weight is not None:
            for labels in tracer.get_labels(weight):
                if labels.shape[0] > 1:
                    tracer.pin(labels, HEAD_SIZE)
    return build_graph(tracer, program.aliases)


def trace_orders(model: nn.Module, example_inputs: Any) -> list[FreeOrder]:
    """Find the units of a model that can be reordered: channels, and channels of heads within their head.

    Args:
        model: The model.
        example_inputs: See `trace`.
    """
    program = record(model, example_inputs)
    tracer = run_rules(program, keeps_sizes=True)
    return list_free_orders(tracer, build_graph(tracer, program.aliases))


def record(model: nn.Module, example_inputs: Any) -> Program:
    """Record the operations of a forward pass: with torch.export, or eagerly if the model cannot be exported."""
    _refuse_missing_weights(model)
    args, kwargs = split_inputs(model, example_inputs)
    with _evaluation_mode(model):
        _check_inputs(model, args, kwargs)
        try:
            with _silence_export():
                exported = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:  # noqa: BLE001 - export raises errors of many kinds
            logger.info("torch.export cannot export the model, so it is traced eagerly: %s", error)
            return record_forward(model, args, kwargs)
    return read_exported(model, exported)


def split_inputs(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the named arguments of a call of the model.

    The cache of language models is disabled, because the heads of a model that returns it cannot be pruned.
    """
    if example_inputs is None:
        raise CalibrationError("example_inputs must be arguments of the model, found None. Pass one batch.")
    args: tuple[Any, ...]
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, tuple | list):
        args, kwargs = tuple(example_inputs), {}
    else:
        args, kwargs = (example_inputs,), {}
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs.setdefault("use_cache", False)
    return args, kwargs


def _refuse_missing_weights(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type == "meta":
            raise UnsupportedModelError(f"{name!r} is on the meta device. Load the weights before tracing the model.")


def _check_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        raise CalibrationError(
            f"The model must accept the example inputs, but its forward pass raised {type(error).__name__}: {error}. "
            f"Pass one batch: a tensor, a tuple of positional arguments, or a mapping of named ones."
        ) from error


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode, and restore the mode of each."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _silence_export() -> Iterator[None]:
    """Hide what torch.export prints before it raises an error, and its warnings about the model's code."""
    loggers = [logging.getLogger(name) for name in EXPORT_LOGGERS]
    before = [item.disabled for item in loggers]
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        try:
            for item in loggers:
                item.disabled = True
            yield
        finally:
            for item, value in zip(loggers, before, strict=True):
                item.disabled = value
