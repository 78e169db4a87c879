"""Copy a model with smaller widths, to measure its cost."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from secateur._calls.pytorch.example_run import ExampleRun
from secateur.errors import ConfigError
from secateur.graph import Graph, Group, Role
from secateur.slimming.pytorch.code_sizes import UnresolvedSizeError
from secateur.slimming.pytorch.surgery import Surgery
from secateur.slimming.pytorch.tensors import list_tensors, locate_removed
from secateur.slimming.removal import Flags, Removal

__all__ = ["SlimCopy", "find_fixed_groups", "make_slim_copy"]


class SlimCopy(NamedTuple):
    """A slimmed copy of a model.

    Attributes:
        model: The copy.
        modules: Name of a module in the dense model → the module in the copy, which may no longer be used.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]


def make_slim_copy(model: nn.Module, graph: Graph, kept: Mapping[int, int], example_inputs: Any) -> SlimCopy:
    """Return a copy of a model whose groups keep the given numbers of units, no matter which units.

    Args:
        model: The dense model, without wrappers.
        graph: The dependencies between its parameters.
        kept: Group index → kept units. Other groups keep all units.
        example_inputs: Typical inputs of the model.

    Raises:
        CalibrationError: The model fails with the example inputs.
        LayerError: The units cannot be removed.
        ConfigError: The constraints of a group do not allow the number of units.
    """
    copied = copy.deepcopy(model)
    modules = dict(copied.named_modules())
    removal = _select_last(graph, kept)
    _zero_readers(copied, removal)
    report = Surgery(copied, graph, ExampleRun(copied, example_inputs)).perform(allow_inexact=True)
    for number, expected in kept.items():
        row = report.groups[number]
        if row.kept_units > expected and not (expected == 0 and _is_unread(graph.groups[number], copied, modules)):
            raise ConfigError(f"group {row.name!r} cannot keep {expected} of {row.units} units, but {row.kept_units}")
    return SlimCopy(copied, modules)


def find_fixed_groups(model: nn.Module, graph: Graph, lowest: Mapping[int, int], example_inputs: Any) -> dict[int, str]:
    """Find groups whose units cannot be removed, because the code of a module contains their number.

    A copy of the model is only made if numbers in the code follow one of the groups.

    Args:
        model: The dense model, without wrappers.
        graph: The dependencies between its parameters.
        lowest: Group index → its smallest width.
        example_inputs: Typical inputs of the model.

    Returns:
        Group index → why.
    """
    fixed: dict[int, str] = {}
    numbers = {number for use in graph.sizes for number in use.groups.tolist()}
    while kept := {number: lowest[number] for number in lowest if number in numbers and number not in fixed}:
        try:
            make_slim_copy(model, graph, kept, example_inputs)
        except UnresolvedSizeError as error:
            if not error.groups:
                raise
            fixed |= dict.fromkeys(error.groups, str(error))
        else:
            break
    return fixed


def _is_unread(group: Group, model: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the layers that read the units of a group were removed, in which case remaining units have no effect."""
    readers = (member.parameter for member in group.members if member.role is Role.CONSUMER)
    left = set(model.modules())
    return not any(modules[name.rpartition(".")[0]] in left for name in readers)


def _select_last(graph: Graph, kept: Mapping[int, int]) -> Removal:
    """Remove the last units of each part of each group."""
    keep: list[Flags] = []
    for number, group in enumerate(graph.groups):
        flags = np.ones((group.constraints.equal_parts, group.units // group.constraints.equal_parts), dtype=bool)
        flags[:, kept.get(number, group.units) // len(flags) :] = False
        keep.append(flags.reshape(-1))
    return Removal(graph=graph, keep=tuple(keep))


def _zero_readers(model: nn.Module, removal: Removal) -> None:
    tensors = list_tensors(model)
    by_id = {id(tensor): tensor for tensor in tensors.values()}
    with torch.no_grad():
        for key, axes in locate_removed(removal, tensors, {Role.CONSUMER}).items():
            for axis, indices in axes.items():
                by_id[key].index_fill_(axis, torch.from_numpy(indices).to(by_id[key].device), 0)
