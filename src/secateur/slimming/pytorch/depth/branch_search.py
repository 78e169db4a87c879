"""Find the branches of residual networks that can be removed when all units of a group are removed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import takewhile

from torch import nn

from secateur._calls.pytorch.example_run import ExampleRun
from secateur._calls.pytorch.output_snapshot import measure_difference
from secateur._resizing.pytorch import BranchLayout, replace_modules
from secateur.errors import CalibrationError
from secateur.frameworks.pytorch import is_transformers_conv1d
from secateur.graph import Graph, Member, Role
from secateur.slimming.pytorch.depth.constant_outputs import ObservedOutput, observe_outputs
from secateur.slimming.pytorch.depth.zero_weights import zero_consumers
from secateur.slimming.pytorch.journal import Journal
from secateur.slimming.pytorch.tensors import list_tensors

__all__ = ["Branch", "BranchSearch", "replace_branches"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """The modules that are removed when all units of a group are removed.

    Attributes:
        module: The module whose output is then a constant.
        layout: The layout of the output.
        feeders: Layers outside of it that compute only the units → the layout of their output without them.
    """

    module: str
    layout: BranchLayout
    feeders: Mapping[str, BranchLayout] = field(default_factory=dict)

    @property
    def modules(self) -> tuple[str, ...]:
        """All removed modules."""
        return (self.module, *self.feeders)


class BranchSearch:
    """Finds branches by running the model with zeros in place of the weights that read the units.

    Args:
        model: The model.
        graph: The dependencies between its parameters.
        example: Runs the model.
        are_zero: Whether these weights are zero already.

    Attributes:
        reasons: Group index → why the group has no branch.
    """

    def __init__(self, model: nn.Module, graph: Graph, example: ExampleRun, *, are_zero: bool = False) -> None:
        self._model, self._graph, self._example, self._are_zero = model, graph, example, are_zero
        self._tensors = list_tensors(model)
        self.reasons: dict[int, str] = {}

    def find(self, groups: Sequence[int]) -> dict[int, Branch]:
        """Return the branch of each group that has one. The model is not modified.

        Args:
            groups: Indices of groups that can be pruned.
        """
        return self._verify(self._propose_apart(groups)) if groups else {}

    def _propose_apart(self, groups: Sequence[int]) -> dict[int, Branch]:
        """Find branches one by one, unless the weights are zero: several together make more modules constant."""
        branches = self._propose(groups)
        if self._are_zero:
            return branches
        readers = {number: self._list_modules(number)[-1] for number in branches}
        parts: list[list[int]] = []
        for number, branch in [*branches.items()]:
            inside = [other for other, name in readers.items() if _is_in(name, branch.module)]
            if len(inside) > 1:
                del branches[number]
                rank = inside.index(number)
                parts += [[] for _ in range(rank + 1 - len(parts))]
                parts[rank].append(number)
        for part in parts:
            branches |= self._propose_apart(part)
        return branches

    def _propose(self, groups: Sequence[int]) -> dict[int, Branch]:
        """Find modules whose output is constant without any unit of the groups."""
        chains = {number: self._list_modules(number) for number in groups}
        outside = {number: self._list_owners(number) for number in groups}
        names = {name for chain in (*chains.values(), *outside.values()) for name in chain}
        try:
            with self._zero(groups):
                outputs = observe_outputs(self._model, sorted(names), self._example)
        except CalibrationError as error:
            self.reasons |= dict.fromkeys(groups, f"the model fails with noise in its activations: {error}")
            return {}
        branches = {}
        for number in groups:
            constant = [name for name in chains[number] if name in outputs and outputs[name].is_constant]
            reason = self._explain(number, constant)
            if reason is None:
                feeders = self._find_feeders(number, constant[0], outputs)
                layout = self._fix_size(number, constant[0], outputs[constant[0]])
                branches[number] = Branch(module=constant[0], layout=layout, feeders=feeders)
            else:
                self.reasons[number] = reason
        return branches

    def _explain(self, number: int, constant: Sequence[str]) -> str | None:
        """Return why a group has no branch, given the modules with a constant output; ``None``: it has one."""
        if not constant:
            return "no module around the weights that read its units returns zeros or a bias without them"
        if not self._is_residual(number, constant[0]):
            return f"{constant[0]!r} is not a branch next to a shortcut: nothing else computes what it returns"
        return None

    def _verify(self, branches: Mapping[int, Branch]) -> dict[int, Branch]:
        """Return the branches that can be replaced: the outputs of the model do not change."""
        if self._is_exact(branches):
            return dict(branches)
        accepted = {}
        for number, branch in branches.items():
            plain = Branch(module=branch.module, layout=branch.layout)
            choices = (branch, plain) if branch.feeders else (branch,)
            choice = next((choice for choice in choices if self._is_exact({number: choice})), None)
            if choice is None:
                self.reasons[number] = f"the model does not work without {branch.module!r}"
            else:
                accepted[number] = choice
        if self._is_exact(accepted):
            return accepted
        self.reasons |= dict.fromkeys(accepted, "the outputs change without all branches together")
        return {}

    def _is_exact(self, branches: Mapping[int, Branch]) -> bool:
        journal = Journal()
        with self._zero(branches):
            expected = self._example.run()
        try:
            replace_branches(self._model, branches.values(), journal)
            return measure_difference(expected, self._example.run(), min_size=1.0) <= self._example.tolerance
        except CalibrationError:
            return False
        finally:
            journal.roll_back()

    def _zero(self, groups: Collection[int]) -> AbstractContextManager[None]:
        if self._are_zero:
            return nullcontext()
        return zero_consumers(self._model, self._graph, self._tensors, groups)

    def _list_modules(self, number: int) -> list[str]:
        """List the modules that contain all readers of a group, the outermost first, without the model itself."""
        readers = [member.parameter for member in self._graph.groups[number].members if member.role is Role.CONSUMER]
        columns = zip(*(name.split(".")[:-1] for name in readers), strict=False)
        shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        return [".".join(shared[:length]) for length in range(1, len(shared) + 1)]

    def _list_owners(self, number: int) -> dict[str, list[Member]]:
        """Return the layers of the members of a group."""
        owners: dict[str, list[Member]] = {}
        for member in self._graph.groups[number].members:
            owners.setdefault(member.parameter.rpartition(".")[0], []).append(member)
        return owners

    def _is_residual(self, number: int, module: str) -> bool:
        """Whether others also compute the channels that a module returns, which it then only adds to."""
        readers = {member.parameter for member in self._graph.groups[number].members if member.role is Role.CONSUMER}
        for group in self._graph.groups:
            producers = {member.parameter for member in group.members if member.role is Role.PRODUCER}
            if producers & readers and any(not _is_in(name, module) for name in producers):
                return True
        return False

    def _fix_size(self, number: int, module: str, output: ObservedOutput) -> BranchLayout:
        """Return the layout of a module, with the size of its output if its input loses the units."""
        layout, members = output.layout, self._graph.groups[number].members
        if layout.axis is not None or all(_is_in(member.parameter, module) for member in members):
            return layout
        reader = next(member.parameter for member in members if member.role is Role.CONSUMER).rpartition(".")[0]
        axis = _find_channel_axis(self._model.get_submodule(reader))
        return layout if axis is None else replace(layout, axis=axis, size=output.shape[axis])

    def _find_feeders(self, number: int, module: str, outputs: Mapping[str, ObservedOutput]) -> dict[str, BranchLayout]:
        """Return the layers outside of a module that compute only the units; none if other weights also compute them.

        One attention head is kept, because kernels do not support attention without heads.
        """
        feeders: dict[str, BranchLayout] = {}
        if self._graph.groups[number].kind == "heads":
            return feeders
        for name, members in self._list_owners(number).items():
            if not _is_in(name, module):
                layer, output = self._model.get_submodule(name), outputs.get(name)
                axis = _find_channel_axis(layer)
                if output is None or not _is_covered(layer, name, members):
                    return {}
                is_norm = axis is None and all(member.role is Role.PER_CHANNEL for member in members)
                if axis is None and not is_norm:
                    return {}
                size = None if axis is None else 0
                feeders[name] = replace(output.layout, axis=axis, size=size, bias=None)
        return feeders


def replace_branches(
    model: nn.Module, branches: Iterable[Branch], journal: Journal, others: Mapping[str, BranchLayout] | None = None
) -> None:
    """Replace the modules of branches, and others, by ones that return the same output at no cost."""
    layouts: dict[str, BranchLayout] = dict(others or {})
    for branch in branches:
        layouts |= {branch.module: branch.layout, **branch.feeders}
    outer = [name for name in layouts if not any(_is_in(name, other) for other in layouts if other != name)]
    replace_modules(model, {name: layouts[name] for name in outer}, journal.replace)


def _is_in(name: str, module: str) -> bool:
    """Whether a module or parameter is another module, or inside it."""
    return f"{name}.".startswith(f"{module}.")


def _is_covered(layer: nn.Module, name: str, members: Iterable[Member]) -> bool:
    """Whether all parameters of a layer belong to some members with all their channels."""
    covered: dict[str, set[int]] = {}
    lengths = {}
    for member in members:
        key = member.parameter.removeprefix(f"{name}.")
        covered.setdefault(key, set()).update(member.index_map.indices().reshape(-1).tolist())
        lengths[key] = member.shape[member.axis]
    own = {key for key, _ in layer.named_parameters()}
    return own <= covered.keys() and all(len(covered[key]) == lengths[key] for key in own)


def _find_channel_axis(layer: nn.Module) -> int | None:
    """Return the axis of the output channels, counted from the end; ``None``: unknown."""
    if isinstance(layer, nn.Linear) or is_transformers_conv1d(layer):
        return -1
    return -len(layer.kernel_size) - 1 if isinstance(layer, CONVOLUTIONS) else None
