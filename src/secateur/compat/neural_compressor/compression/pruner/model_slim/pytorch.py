"""Find attention and feed-forward networks in torch models, and remove their pruned parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from secateur._calls.pytorch.random_inputs import make_random_inputs
from secateur.compat.neural_compressor._runs.pytorch import find_heads, read_example_inputs, unwrap_presented
from secateur.errors import CalibrationError, UnsupportedModelError
from secateur.frameworks.pytorch import unwrap_model
from secateur.graph import Graph, Group, Role, trace
from secateur.masking.active import list_active
from secateur.planning.pytorch import find_candidates
from secateur.slimming import SlimReport, slim

__all__ = ["find_attention", "find_consecutive_layers", "slim_groups"]

LINEAR = frozenset({"Linear", "Conv1D", "NonDynamicallyQuantizableLinear"})
"""Class names of linear layers."""

EXAMPLES, TOKENS = 3, 23
"""Number and length of generated sequences, which differ from the number of channels of any model."""

IMAGE_SIZE = 64
"""Height and width of generated images."""


def find_attention(
    model: nn.Module, batches: Iterable[Any] | None = None
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the names of the query, key and value projections, and of the output projection, of each attention layer.

    Args:
        model: The model.
        batches: See `find_heads`.
    """
    groups, _ = find_heads(model, batches)
    return [(_list_layers(group, Role.PRODUCER), _list_layers(group, Role.CONSUMER)) for group in groups]


def find_consecutive_layers(model: nn.Module, batches: Iterable[Any] | None) -> dict[str, tuple[str, ...]]:
    """Return layer → the linear layers whose outputs it reads, in the order of the model; output layers are left out.

    Args:
        model: The model.
        batches: Batches that it accepts; ``None``: generate inputs.

    Raises:
        CalibrationError: The model does not run on the inputs.
    """
    inputs = _create_inputs(model) if batches is None else read_example_inputs(model, batches)
    outputs = {candidate.name for candidate in find_candidates(model, prune_frozen=True) if candidate.is_output}
    linear = [name for name, module in model.named_modules() if type(module).__name__ in LINEAR]
    before: dict[str, list[str]] = {}
    for group in _trace(model, inputs, batches).groups:
        producers = _list_layers(group, Role.PRODUCER)
        is_removable = group.kind == "channels" and group.obstacle is None and group.inexact is None
        for name in _list_layers(group, Role.CONSUMER) if is_removable and {*producers} <= {*linear} else ():
            before.setdefault(name, []).extend(producers)
    return {name: tuple(dict.fromkeys(before[name])) for name in linear if before.get(name) and name not in outputs}


def slim_groups(model: nn.Module, batches: Iterable[Any] | None, multiples: Mapping[str, int]) -> SlimReport:
    """Remove the units of the given kinds that nothing reads, in place.

    Args:
        model: The model. Runs that prune it end.
        batches: Batches that it accepts; ``None``: make random inputs from its configuration.
        multiples: Kind of the units, such as ``"channels"`` → the number of kept units is a multiple of this.

    Raises:
        CalibrationError: There are no batches, and the model has no transformers configuration.
        SecateurError: See `secateur.slim`.
    """
    model = unwrap_presented(model)
    inputs = _create_random_inputs(model) if batches is None else read_example_inputs(model, batches)
    if inputs is None:
        raise CalibrationError(
            f"dataloader must be given for a {type(model).__name__}, whose inputs no transformers configuration "
            "describes. Pass a list with one batch that the model accepts."
        )
    for pruner in list_active():
        if unwrap_model(pruner.model) is model:
            pruner.finalize()
    graph = _trace(model, inputs, batches)
    groups = tuple(_restrict_group(group, multiples) for group in graph.groups)
    return slim(model, example_inputs=inputs, graph=replace(graph, groups=groups))


def _trace(model: nn.Module, inputs: Any, batches: Iterable[Any] | None) -> Graph:
    try:
        return trace(model, inputs)
    except CalibrationError as error:
        source = "generated inputs (pass dataloader)" if batches is None else "the first batch of dataloader"
        raise CalibrationError(f"The model does not run on {source}: {error}") from error


def _restrict_group(group: Group, multiples: Mapping[str, int]) -> Group:
    """Make a group keep a multiple of a number of units, or all of them if its kind has none."""
    if group.kind not in multiples:
        return replace(group, reason=group.reason or f"only {', '.join(multiples)} are removed")
    return replace(group, constraints=replace(group.constraints, multiple=multiples[group.kind]))


def _list_layers(group: Group, role: Role) -> tuple[str, ...]:
    names = [member.parameter.rpartition(".")[0] for member in group.members if member.role is role]
    return tuple(dict.fromkeys(names))


def _create_random_inputs(model: nn.Module) -> Any:
    inputs = make_random_inputs(model, EXAMPLES, TOKENS)
    return None if inputs is None else read_example_inputs(model, [inputs])


def _create_inputs(model: nn.Module) -> Any:
    """Generate inputs that suit the configuration of a model, or its first layer."""
    if (inputs := _create_random_inputs(model)) is not None:
        return inputs
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return module.weight.new_ones((EXAMPLES, TOKENS), dtype=torch.int64)
        if isinstance(module, nn.Linear):
            return module.weight.new_ones((EXAMPLES, module.in_features))
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            axes = len(module.kernel_size)
            return module.weight.new_ones((EXAMPLES, module.in_channels, *([IMAGE_SIZE] * axes)))
    raise UnsupportedModelError("The model must begin with an embedding, a linear layer or a convolution.")
