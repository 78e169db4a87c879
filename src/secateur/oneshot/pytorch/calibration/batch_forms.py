"""Convert batches of data loaders and tokenizers to arguments of a model's ``forward``, and suggest fixes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["arrange_arguments", "suggest_batches"]

LABELS = ("labels", "label", "targets", "target")
"""Names under which data sets store labels."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arrange_arguments(model: nn.Module, batch: Any) -> Arguments | None:
    """Return the positional and keyword arguments with which to call a model; ``None``: the batch has another form.

    Values that ``forward`` does not accept are left out: the labels of ``(inputs, labels)``, as data loaders yield, and
    those of a mapping. A mapping whose names are not those of arguments is the only argument, as in
    ``forward(features)``.

    Examples:
        >>> inputs, labels = torch.ones(2, 4), torch.tensor([0, 1])
        >>> args, kwargs = arrange_arguments(nn.Linear(4, 2), (inputs, labels))
        >>> len(args), kwargs
        (1, {})
    """
    if isinstance(batch, torch.Tensor):
        return (batch,), {}
    parameters = _get_parameters(model)
    if isinstance(batch, (tuple, list)) and batch:
        if isinstance(batch[0], Mapping):
            return arrange_arguments(model, batch[0])
        args = _drop_labels(tuple(batch), parameters)
        return (args, {}) if all(isinstance(item, torch.Tensor) for item in args) else None
    if isinstance(batch, Mapping) and batch and all(isinstance(key, str) for key in batch):
        return _arrange_mapping(dict(batch), parameters)
    return None


def suggest_batches(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the line that passes batches in a form that ``forward`` accepts, as a sentence; empty if there is none."""
    if suggestion := _suggest_dtype(model, [*args, *kwargs.values()]):
        return suggestion
    parameters = _get_parameters(model)
    names = [parameter.name for parameter in parameters]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    taken = [key for key in kwargs if key in names]
    if kwargs and taken and len(taken) < len(kwargs) and not takes_any:
        keys = ", ".join(map(repr, taken))
        return _suggest(f"[{{key: batch[key] for key in ({keys},)}} for batch in batches]")
    if kwargs and not taken:
        tensors = [key for key, value in kwargs.items() if isinstance(value, torch.Tensor) and key not in LABELS]
        return _suggest(f"[batch[{tensors[0]!r}] for batch in batches]") if tensors else ""
    features = args[0] if len(args) == 1 and isinstance(args[0], Mapping) else None
    if features:
        return _suggest(f"[batch[{next(iter(features))!r}] for batch in batches]")
    return _suggest("[batch[0] for batch in batches]") if len(args) > 1 else ""


def _suggest_dtype(model: nn.Module, inputs: Iterable[Any]) -> str:
    """Return a sentence if floating-point inputs have another data type than the weights of the model."""
    expected = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), None)
    dtypes = [value.dtype for value in inputs if isinstance(value, torch.Tensor) and value.is_floating_point()]
    wrong = next((dtype for dtype in dtypes if dtype != expected), None)
    if expected is None or wrong is None:
        return ""
    return f" The batch has {wrong} and the model {expected}: convert the batches with .to({expected})."


def _suggest(line: str) -> str:
    return f" If the model needs only a part of each batch, pass calibration={line}."


def _get_parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of ``forward``; none if they are unknown, as in scripted modules."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def _count_required(parameters: Iterable[inspect.Parameter]) -> int:
    return sum(_is_positional(parameter) and parameter.default is parameter.empty for parameter in parameters)


def _drop_labels(args: tuple[Any, ...], parameters: list[inspect.Parameter]) -> tuple[Any, ...]:
    takes_any = not parameters or any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    required = max(1, _count_required(parameters))
    if not takes_any:
        args = args[: max(1, sum(map(_is_positional, parameters)))]
    while len(args) > required and _are_labels(args[-1], args[0]):
        args = args[:-1]
    return args


def _are_labels(values: Any, inputs: Any) -> bool:
    """Whether values are the classes of floating-point inputs, one integer per row."""
    are_tensors = isinstance(values, torch.Tensor) and isinstance(inputs, torch.Tensor)
    return (
        are_tensors
        and inputs.is_floating_point()
        and not (values.is_floating_point() or values.is_complex() or values.dtype is torch.bool)
        and values.shape == inputs.shape[:1]
    )


def _arrange_mapping(batch: dict[str, Any], parameters: list[inspect.Parameter]) -> Arguments:
    names = [parameter.name for parameter in parameters]
    takes_any = not parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if not any(key in names for key in batch) and _count_required(parameters) == 1:
        return (batch,), {}
    return (), {key: value for key, value in batch.items() if takes_any or key in names or key not in LABELS}
