"""Remove units from a model: select, probe, cut, verify, and undo everything if a check fails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from secateur._calls.pytorch.example_run import ExampleRun
from secateur._huggingface.pytorch import is_pretrained
from secateur._resizing.pytorch import CONFIG, Sizes, list_branches, read_sizes, set_sizes
from secateur._wording import format_list
from secateur.errors import LayerError
from secateur.graph import Graph
from secateur.slimming.pytorch.code_sizes import SizeSearch, UnresolvedSizeError
from secateur.slimming.pytorch.configuration import update_configs
from secateur.slimming.pytorch.cutting import cut_tensors, refuse_hooks, refuse_shared_memory, update_layers
from secateur.slimming.pytorch.depth.depth_plan import DepthPlan, plan_depth
from secateur.slimming.pytorch.descriptions import update_descriptions
from secateur.slimming.pytorch.journal import Journal
from secateur.slimming.pytorch.optimizer_state import check_state, forget_parameters, replace_parameters
from secateur.slimming.pytorch.probe import probe_removal
from secateur.slimming.pytorch.tensors import AxisIndices, find_zero_units, list_tensors, locate_removed
from secateur.slimming.removal import Flags, Removal, find_culprits
from secateur.slimming.report import SlimReport
from secateur.slimming.selection import (
    check_members,
    describe_groups,
    explain_obstacle,
    find_equal_groups,
    select_removal,
)

__all__ = ["Surgery"]

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


class Surgery:
    """Removes units from a model.

    Args:
        model: The model, without wrappers.
        graph: The dependencies between its parameters.
        example: Runs the model on its example inputs.
        optimizers: The optimizers of the model.

    Raises:
        LayerError: The graph belongs to another model.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, example: ExampleRun, optimizers: Sequence[Optimizer] = ()
    ) -> None:
        self._model, self._graph, self._example, self._optimizers = model, graph, example, optimizers
        self._tensors = list_tensors(model)
        check_members(graph, {name: tuple(tensor.shape) for name, tensor in self._tensors.items()})

    def perform(self, *, allow_inexact: bool = False, is_uniform: bool = False) -> SlimReport:
        """Remove all units that nothing reads; see `secateur.slim` for the arguments and the exceptions."""
        graph, before = self._graph, _count_weights(self._model)
        zeros = find_zero_units(graph, self._tensors)
        obstacles = [explain_obstacle(group, allow_inexact=allow_inexact) for group in graph.groups]
        plan = self._plan_depth(zeros, obstacles, is_uniform=is_uniform)
        removal = plan.complete(select_removal(graph, zeros, obstacles, is_uniform=is_uniform), self._tensors)
        probed = self._restrict_to_exact(removal)
        probe = probe_removal(probed, self._tensors, self._example) if probed.groups else 0.0
        depth_journal, journal = Journal(), Journal()
        try:
            rest = self._remove_branches(plan, removal, depth_journal)
            removed = self._check(rest)
            depth_proof = self._prove_branches(plan)
            pairs, proof, inexact = self._cut_all(self._restrict_to_exact(rest), rest, journal)
            sizes = self._collect_sizes(pairs, journal)
        except BaseException:
            journal.roll_back()
            depth_journal.roll_back()
            raise
        forget_parameters(self._optimizers, plan.gone)
        replace_parameters(self._optimizers, pairs, removed)
        set_sizes(self._model, sizes)
        config = plan.config | update_configs(self._model, rest)
        return SlimReport(
            groups=tuple(describe_groups(removal, zeros, obstacles, plan.reasons)),
            barriers=tuple(map(str, graph.barriers)),
            weights_before=before,
            weights=_count_weights(self._model),
            probe_difference=probe,
            proof_difference=max(depth_proof, proof),
            inexact_difference=inexact,
            attributes={name: values for name, values in sizes.items() if values},
            branches=plan.standing,
            blocks=plan.blocks,
            config=config,
            is_configured=self._is_configured(),
        )

    def _plan_depth(self, zeros: Sequence[Flags], obstacles: Sequence[str | None], *, is_uniform: bool) -> DepthPlan:
        """Plan which branches and blocks to remove: those of exact groups of which nothing reads any unit."""
        narrowed = [number for number, obstacle in enumerate(obstacles) if obstacle is None and zeros[number].any()]
        empty = [number for number in narrowed if self._graph.groups[number].inexact is None and zeros[number].all()]
        return plan_depth(self._model, self._graph, self._example, (empty, narrowed), is_uniform=is_uniform)

    def _restrict_to_exact(self, removal: Removal) -> Removal:
        return removal.restrict([number for number in removal.groups if removal.graph.groups[number].inexact is None])

    def _remove_branches(self, plan: DepthPlan, removal: Removal, journal: Journal) -> Removal:
        """Remove branches and blocks, and return what remains to be removed."""
        tensors, modules = self._tensors, dict(self._model.named_modules(remove_duplicate=False))
        plan.apply(self._model, journal)
        rest = plan.follow(removal, tensors, modules, self._model)
        self._graph, self._tensors = rest.graph, list_tensors(self._model)
        return rest

    def _prove_branches(self, plan: DepthPlan) -> float:
        """Check that the outputs equal those of the masked model.

        Raises:
            LayerError: They differ.
        """
        difference = self._example.measure_change() if plan.branches else 0.0
        if not difference <= self._example.tolerance:
            names = format_list(map(repr, (*plan.standing, *plan.blocks)))
            raise LayerError(f"the outputs change by {difference:.1e} without {names}. Nothing was removed")
        return difference

    def _check(self, removal: Removal) -> dict[int, AxisIndices]:
        """Check that the tensors that lose units can be replaced, and return which indices are removed from each."""
        removed = locate_removed(removal, self._tensors)
        refuse_shared_memory(self._model, removed)
        refuse_hooks(self._model, removed)
        check_state(self._optimizers, removed)
        return removed

    def _is_configured(self) -> bool | None:
        """Whether the configuration of a transformers model describes all of it; ``None``: it is another model."""
        if not any(map(is_pretrained, self._model.modules())):
            return None
        return not read_sizes(self._model) and not list_branches(self._model)

    def _cut_all(self, exact: Removal, removal: Removal, journal: Journal) -> tuple[Pairs, float, float | None]:
        """Cut and verify the exact groups, and then cut the other groups, if any, and measure the difference."""
        proof, inexact = 0.0, None
        pairs: Pairs = []
        if exact.groups:
            pairs, proof = self._prove(exact, journal)
        if exact.groups != removal.groups:
            journal.roll_back()
            pairs = self._cut(removal, journal)
            inexact = SizeSearch(self._model, removal, self._example).fit(journal, math.inf)
        if pairs:
            self._describe(removal, journal, self._example.tolerance if inexact is None else math.inf)
        return pairs, proof, inexact

    def _prove(self, removal: Removal, journal: Journal) -> tuple[Pairs, float]:
        """Cut, and check that the outputs equal those of the masked model.

        Raises:
            UnresolvedSizeError: The code of a module contains a number that must change, and no attribute contains it.
            LayerError: They differ, or the model fails; the message names the group.
        """
        try:
            return self._cut_and_compare(removal, journal)
        except LayerError as error:
            journal.roll_back()
            culprits = find_culprits(removal, lambda part: self._find_failure(part) is not None)
            reason = self._find_failure(culprits) or error
            if isinstance(reason, UnresolvedSizeError):
                groups = find_equal_groups(self._graph.groups, culprits.groups)
                raise UnresolvedSizeError(
                    str(reason), [number for number in removal.groups if number in groups]
                ) from error
            raise LayerError(f"{culprits.describe_groups()}: {reason}") from error

    def _cut_and_compare(self, removal: Removal, journal: Journal) -> tuple[Pairs, float]:
        pairs = self._cut(removal, journal)
        return pairs, SizeSearch(self._model, removal, self._example).fit(journal, self._example.tolerance)

    def _find_failure(self, removal: Removal) -> LayerError | None:
        """Return why the removal of some groups fails; ``None``: it does not. The model is not modified."""
        journal = Journal()
        try:
            self._cut_and_compare(removal, journal)
        except LayerError as error:
            return error
        finally:
            journal.roll_back()
        return None

    def _cut(self, removal: Removal, journal: Journal) -> Pairs:
        removed = locate_removed(removal, self._tensors)
        pairs = cut_tensors(self._model, removed, journal)
        update_layers(self._model, {id(new): removed[id(old)] for old, new in pairs}, journal)
        return pairs

    def _describe(self, removal: Removal, journal: Journal, tolerance: float) -> None:
        """Update attributes that only describe sizes, unless the outputs change with them."""
        start = journal.mark()
        update_descriptions(self._model, removal, journal)
        if journal.mark() > start and not self._example.is_close(tolerance):
            journal.roll_back(start)

    def _collect_sizes(self, pairs: Pairs, journal: Journal) -> Sizes:
        """Return the attributes that changed, with the modules of all tensors that changed."""
        new = {id(tensor) for _, tensor in pairs}
        changed = journal.list_attributes()
        sizes: Sizes = {}
        for name, module in self._model.named_modules():
            attributes = changed.get(id(module.__dict__), ())
            own = (*module._parameters.values(), *module._buffers.values())
            if attributes or any(id(tensor) in new for tensor in own):
                sizes[name] = {key: module.__dict__[key] for key in attributes if key != "config"}
            if "config" in attributes:
                before, after = vars(journal.find_first(module.__dict__, "config")), vars(module.__dict__["config"])
                sizes[name] |= {f"{CONFIG}{key}": after[key] for key in after if after[key] != before[key]}
        return sizes


def _count_weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
