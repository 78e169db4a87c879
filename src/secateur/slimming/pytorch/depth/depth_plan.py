"""Remove whole branches and blocks of residual networks.

A branch is a module whose output is a constant, zero or a bias, once nothing reads the units of a group: an attention
layer without heads, a feed-forward network without neurons. Without both of its branches, a block returns its input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._calls.pytorch.example_run import ExampleRun
from secateur._calls.pytorch.output_snapshot import OutputSnapshot, measure_difference
from secateur._resizing.pytorch import BranchLayout, list_children
from secateur._wording import format_list
from secateur.errors import CalibrationError
from secateur.graph import Graph, Member
from secateur.slimming.pytorch.depth.block_search import (
    BlockCut,
    configure_cut,
    find_identities,
    find_pretrained,
    remove_blocks,
)
from secateur.slimming.pytorch.depth.branch_search import Branch, BranchSearch, replace_branches
from secateur.slimming.pytorch.depth.dead_modules import find_dead_modules
from secateur.slimming.pytorch.journal import Journal
from secateur.slimming.pytorch.tensors import list_tensors
from secateur.slimming.removal import Removal
from secateur.slimming.selection import explain_obstacle, feeds_groups

__all__ = ["DepthPlan", "find_branches", "plan_depth"]

logger = logging.getLogger(__name__)


def find_branches(
    model: nn.Module, graph: Graph, example: ExampleRun, narrowed: Collection[int] = ()
) -> dict[int, str]:
    """Find the modules that can be removed as a whole when all units of a group are removed. The model does not change.

    Args:
        model: The model.
        graph: The dependencies between its parameters.
        example: Runs the model on its example inputs.
        narrowed: Indices of groups that may also lose units; branches whose replacement would have a fixed number of
            these units are left out.

    Returns:
        Group index → name of the module.

    Examples:
        >>> from secateur.graph import trace
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        ...
        ...     def forward(self, x):
        ...         return x + self.mlp(x)
        >>> model = nn.Sequential(nn.Linear(4, 4), Block(), nn.Linear(4, 2))
        >>> graph = trace(model, torch.ones(2, 4))
        >>> branches = find_branches(model, graph, ExampleRun(model, torch.ones(2, 4)))
        >>> [(graph.groups[number].name, name) for number, name in branches.items()]
        [('1.mlp.0', '1.mlp')]
    """
    groups = [number for number, group in enumerate(graph.groups) if explain_obstacle(group) is None]
    branches = _leave_fixed(BranchSearch(model, graph, example).find(groups), graph, narrowed)
    return {number: branch.module for number, branch in branches.items()}


def _leave_fixed(branches: Mapping[int, Branch], graph: Graph, narrowed: Collection[int]) -> dict[int, Branch]:
    """Leave out branches whose replacement has a fixed size along an axis that loses units."""
    return {
        number: branch
        for number, branch in branches.items()
        if branch.layout.axis is None or not feeds_groups(graph, number, narrowed)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthPlan:
    """The modules that are removed from a model as a whole.

    Attributes:
        branches: Group index → the branch that is removed with it.
        cuts: The removed blocks.
        blocks: Their names.
        reasons: Index of a group of which nothing reads any unit → why it has no branch.
        dead: Other modules that have no effect without the branches, such as a norm before one → their output.
        gone: Ids of the removed tensors.
    """

    branches: Mapping[int, Branch] = field(default_factory=dict)
    cuts: tuple[BlockCut, ...] = ()
    blocks: tuple[str, ...] = ()
    reasons: Mapping[int, str] = field(default_factory=dict)
    dead: Mapping[str, BranchLayout] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()

    @property
    def standing(self) -> tuple[str, ...]:
        """The modules of branches outside of removed blocks."""
        inside = tuple(f"{name}." for name in self.blocks)
        names = (*(name for branch in self.branches.values() for name in branch.modules), *self.dead)
        return tuple(dict.fromkeys(name for name in names if not name.startswith(inside)))

    @property
    def config(self) -> dict[str, Any]:
        """Fields of the configuration of a transformers model that change, and their new values."""
        return {name: value for cut in self.cuts for name, value in cut.config.items()}

    def apply(self, model: nn.Module, journal: Journal) -> None:
        """Replace branches and what has no effect without them, and remove blocks."""
        replace_branches(model, self.branches.values(), journal, self.dead)
        remove_blocks(model, self.cuts, journal)

    def complete(self, removal: Removal, tensors: Mapping[str, torch.Tensor]) -> Removal:
        """Add the groups that are removed as a whole to a removal.

        Args:
            removal: The other units to remove.
            tensors: The tensors of the model by name, before anything is removed.
        """
        flags = [
            np.zeros_like(keep) if all(id(tensors[member.parameter]) in self.gone for member in group.members) else keep
            for group, keep in zip(removal.graph.groups, removal.keep, strict=True)
        ]
        return Removal(graph=removal.graph, keep=tuple(flags))

    def follow(
        self, removal: Removal, tensors: Mapping[str, torch.Tensor], modules: Mapping[str, nn.Module], model: nn.Module
    ) -> Removal:
        """Return what is still to be removed from a model, after `apply`.

        Args:
            removal: All units to remove.
            tensors: The tensors of the model by name, before `apply`.
            modules: The modules of the model by name, before `apply`.
            model: The model, after it.
        """
        if not self.branches:
            return removal
        names: dict[int, str] = {}
        for name, tensor in list_tensors(model).items():
            names.setdefault(id(tensor), name)
        places = {id(module): name for name, module in reversed([*model.named_modules()])}
        groups, keep = [], []
        for group, flags in zip(removal.graph.groups, removal.keep, strict=True):
            members = (member for member in group.members if id(tensors[member.parameter]) in names)
            left = tuple(_rename(member, tensors, names) for member in members)
            groups.append(replace(group, members=left) if left else group)
            keep.append(flags if left else np.ones_like(flags))
        sizes = tuple(
            replace(use, module=places[id(modules[use.module])])
            for use in removal.graph.sizes
            if id(modules[use.module]) in places
        )
        return Removal(graph=replace(removal.graph, groups=tuple(groups), sizes=sizes), keep=tuple(keep))


def plan_depth(
    model: nn.Module,
    graph: Graph,
    example: ExampleRun,
    groups: tuple[Sequence[int], Collection[int]],
    *,
    is_uniform: bool = False,
) -> DepthPlan:
    """Plan the removal of branches and blocks, without modifying the model.

    Args:
        model: The model.
        graph: The dependencies between its parameters.
        example: Runs the model on its example inputs.
        groups: Indices of groups of which nothing reads any unit, because all weights that read them are zero; and
            those of all groups that lose units.
        is_uniform: Whether branches are only removed with their whole block, so that all blocks have the same parts.
    """
    empty, narrowed = groups
    if not empty:
        return DepthPlan()
    search = BranchSearch(model, graph, example, are_zero=True)
    branches = _leave_fixed(search.find(empty), graph, narrowed)
    cuts = _select_cuts(model, branches, example)
    blocks = tuple(name for cut in cuts for name in _list_blocks(model, cut))
    if is_uniform:
        inside = tuple(f"{name}." for name in blocks)
        branches = {number: branch for number, branch in branches.items() if branch.module.startswith(inside)}
    dead = find_dead_modules(model, [*branches.values()], example) if branches else {}
    plan = DepthPlan(branches=branches, cuts=tuple(cuts), blocks=blocks, reasons=search.reasons, dead=dead)
    before, journal = list_tensors(model), Journal()
    try:
        plan.apply(model, journal)
        after = {id(tensor) for tensor in list_tensors(model).values()}
    finally:
        journal.roll_back()
    return replace(plan, gone=frozenset(id(tensor) for tensor in before.values()) - after)


def _list_blocks(model: nn.Module, cut: BlockCut) -> list[str]:
    children = list_children(model, cut.container)
    return [children[position] for position in cut.positions]


def _select_cuts(model: nn.Module, branches: Mapping[int, Branch], example: ExampleRun) -> list[BlockCut]:
    """Find the blocks that can be removed with their branches, and try the model without them."""
    journal = Journal()
    cuts: list[BlockCut] = []
    try:
        replace_branches(model, branches.values(), journal)
        expected = example.run()
        names = [branch.module for branch in branches.values()]
        for container, positions in find_identities(model, names, example).items():
            if not any(f"{container}.".startswith(f"{name}.") for cut in cuts for name in _list_blocks(model, cut)):
                cut = _select_cut(model, container, positions, partial(_is_equal_without, model, example, expected))
                cuts += [] if cut is None else [cut]
        return cuts if _is_equal_without(model, example, expected, cuts) else []
    except CalibrationError:
        return []
    finally:
        journal.roll_back()


def _select_cut(
    model: nn.Module, container: str, positions: tuple[int, ...], works: Callable[[Sequence[BlockCut]], bool]
) -> BlockCut | None:
    """Return which blocks of a list can be removed: those that return their input.

    The first block of a transformers model is kept, because it counts tokens for the cache.
    """
    choices = [positions]
    if len(positions) == len(list_children(model, container)):
        choices = [positions, positions[1:]] if find_pretrained(model, container) is None else [positions[1:]]
    for choice in choices:
        cut = configure_cut(model, container, choice) if choice else None
        if cut is not None and works([cut]):
            return cut
    if not choices[-1]:
        return None
    logger.info(
        "Blocks %s of %r return their input, but stay: the model does not work without them, or its configuration "
        "cannot describe it.",
        format_list(map(str, positions)),
        container,
    )
    return None


def _is_equal_without(
    model: nn.Module, example: ExampleRun, expected: OutputSnapshot, cuts: Sequence[BlockCut]
) -> bool:
    journal = Journal()
    try:
        remove_blocks(model, cuts, journal)
        return measure_difference(expected, example.run(), min_size=1.0) <= example.tolerance
    except CalibrationError:
        return False
    finally:
        journal.roll_back()


def _rename(member: Member, tensors: Mapping[str, torch.Tensor], names: Mapping[int, str]) -> Member:
    """Give a member the name that its parameter has now."""
    aliases = tuple(names[id(tensors[alias])] for alias in member.aliases if id(tensors.get(alias)) in names)
    return replace(member, parameter=names[id(tensors[member.parameter])], aliases=aliases)
