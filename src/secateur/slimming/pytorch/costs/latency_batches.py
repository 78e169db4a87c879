"""Find groups that can be slimmed in the same copy of a model and still be timed separately."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from secateur.graph import Graph, Group
from secateur.slimming.pytorch.tensors import list_tensors

__all__ = ["BatchLayers", "find_layers", "form_batches", "get_layer_kind"]

BatchLayers: TypeAlias = Mapping[int, Sequence[str]]
"""Group index → the names of its layers."""


def find_layers(model: nn.Module, graph: Graph, groups: Iterable[int]) -> dict[int, list[str]]:
    """Return for each group the names of the modules that own its weights, without those that contain others.

    Args:
        model: The model.
        graph: The dependencies between its parameters.
        groups: Indices of the groups.
    """
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners.setdefault(id(tensor), name)
    tensors = list_tensors(model)
    layers = {}
    for number in groups:
        names = {owners[id(tensors[member.parameter])] for member in graph.groups[number].members}
        layers[number] = sorted(name for name in names if not any(_contains(name, other) for other in names))
    return layers


def form_batches(graph: Graph, layers: BatchLayers) -> list[list[int]]:
    """Divide groups into batches of the same kind, whose groups share no layer.

    Args:
        graph: The dependencies between the parameters.
        layers: Group index → its layers.
    """
    batches: list[tuple[str, set[str], list[int]]] = []
    for number, own in layers.items():
        kind = graph.groups[number].kind
        fitting = (batch for batch in batches if batch[0] == kind and batch[1].isdisjoint(own))
        batch = next(fitting, None)
        if batch is None:
            batch = kind, set(), []
            batches.append(batch)
        batch[1].update(own)
        batch[2].append(number)
    return [numbers for _, _, numbers in batches]


def get_layer_kind(group: Group, layer: str) -> object:
    """Return a key that is equal for layers that shrink in the same way: it ignores the numbers in their names.

    Args:
        group: The group.
        layer: Name of one of its layers.
    """
    members = (
        (_hide_numbers(member.parameter), member.shape, member.axis)
        for member in group.members
        if _contains(layer, member.parameter)
    )
    return group.kind, group.units, _hide_numbers(layer), tuple(members)


def _hide_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _contains(module: str, name: str) -> bool:
    return module != name and (not module or name.startswith(f"{module}."))
