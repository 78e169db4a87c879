"""The layers to prune, with their weights and selectors, and the problems that solvers get."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.criteria import get_criterion
from secateur.errors import ConfigError
from secateur.frameworks.pytorch import StackedWeight
from secateur.frameworks.view import WeightView
from secateur.masking.pytorch import ParameterWeight
from secateur.masking.run import refuse_violations
from secateur.oneshot.pytorch.calibration.expert_statistics import ExpertStatistics
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.patterns import BasePattern
from secateur.planning.planner import Plan
from secateur.results import LayerResult
from secateur.solvers.base import Solver
from secateur.solvers.magnitude import Magnitude
from secateur.solvers.problem import LayerRows, Problem, Solution
from secateur.solvers.selector import Selector

__all__ = [
    "Target",
    "build_blind_problem",
    "build_experts_problem",
    "build_problem",
    "build_targets",
    "split_by_expert",
    "write_solution",
]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One layer to prune.

    Attributes:
        name: The layer's name in the model.
        module: The layer.
        pattern: The pattern of the plan, which this layer shares with others.
        selector: Selects the weights of this layer to keep.
    """

    name: str
    module: nn.Module | StackedWeight
    pattern: BasePattern
    selector: Selector

    @property
    def weight(self) -> ParameterWeight:
        """The current weight."""
        return ParameterWeight(self.name, self.pattern)

    def read_matrix(self) -> torch.Tensor:
        """Return the weight in float32, of shape (groups, output channels per group, input features)."""
        canonical = self.weight.canonical().float()
        groups = self.pattern.views[self.name].groups
        return canonical.reshape(groups, canonical.shape[0] // groups, -1)

    def to_stored(self, array_GRF: torch.Tensor) -> torch.Tensor:
        """Convert weights or a mask of that shape to the weight's stored shape."""
        view = self.pattern.views[self.name]
        stored: torch.Tensor = view.to_stored(array_GRF.reshape(view.canonical_shape))
        return stored

    def score(self, weight_OKI: torch.Tensor) -> torch.Tensor:
        """Return the scores of the configured criterion, which ignores the inputs."""
        criterion = get_criterion(self.pattern.config, self.name)
        scores = criterion.score(self.pattern.framework.to_array(weight_OKI), None)
        return torch.as_tensor(scores, device=weight_OKI.device)

    def verify(self, mask: torch.Tensor) -> LayerResult:
        """Verify the mask and the weight, and return what was pruned.

        Raises:
            StateError: The mask or the weight does not fit the pattern.
        """
        weight, view = self.weight.stored, self.pattern.views[self.name]
        if reason := self.selector.check(view.to_canonical(mask), view.to_canonical(weight)):
            refuse_violations({self.name: reason})
        return LayerResult(
            name=self.name,
            pattern=self.pattern.config.pattern,
            shape=tuple(weight.shape),
            weights=weight.numel(),
            pruned_weights=int((~mask).count_nonzero()),
            units=self.selector.tiling.count,
            pruned_units=self.selector.count_pruned_units(view.to_canonical(mask)),
        )


def build_targets(plan: Plan, counts: Mapping[str, int], solver: Solver) -> dict[str, Target]:
    """Build the targets for all layers that have a count, in the model's order.

    Args:
        plan: The plan.
        counts: Layer → number of units to prune, as the pattern's budget counts them.
        solver: The solver, which determines how the scores of a unit's weights are reduced.
    """
    patterns = {name: pattern for pattern in plan.patterns for name in pattern.views}
    return {
        row.name: _create_target(row.name, patterns[row.name], counts[row.name], solver)
        for row in plan.layers
        if row.name in counts
    }


def _create_target(name: str, pattern: BasePattern, count: int, solver: Solver) -> Target:
    if pattern.config.kind == "pattern_lock":
        raise ConfigError(
            f"layer {name!r}: kind='pattern_lock' keeps the existing zeros, so there is nothing to prune. Use it with "
            f"secateur.prepare."
        )
    if pattern.config.keep_zeros:
        raise ConfigError(
            f"layer {name!r}: solvers do not support keep_zeros=True, because they select from all weights. Leave it "
            f"out, or prune without calibration data."
        )
    config, module, view = pattern.config, pattern.modules[name], pattern.views[name]
    canonical = WeightView(
        shape=view.canonical_shape, output_axes=(0,), kernel_axes=(1,), input_axes=(2,), groups=view.groups
    )
    reduction = config.criterion_reduce_type if isinstance(solver, Magnitude) else "sum"
    selector = Selector(config.pattern, canonical, count, reduction)
    return Target(name=name, module=module, pattern=pattern, selector=selector)


def build_problem(targets: list[Target], statistics: InputStatistics) -> Problem:
    """Build the problem of layers that read the same inputs."""
    first = targets[0].name
    norms, (means, variances) = statistics.norms(first), statistics.compute_moments(first)
    problem = _create_problem(targets, norms, statistics.pop_gram(first))
    return replace(problem, means=means, variances=variances)


def build_experts_problem(target: Target, experts: ExpertStatistics) -> Problem:
    """Build one problem of all stacked experts, where all features of experts without inputs count the same."""
    sums = experts.get_sums(target.name)
    unused = experts.find_unused_experts(target.name)
    squares_GF = (sums.diagonal(dim1=-2, dim2=-1) if experts.with_gram else sums).clamp(min=0)
    energy = float(squares_GF.sum()) / max(1, len(sums) - len(unused)) / squares_GF.shape[1]
    norms_GF = squares_GF.sqrt()
    norms_GF[unused] = energy**0.5
    gram_GFF = sums.clone() if experts.with_gram else None
    if gram_GFF is not None:
        gram_GFF[unused] = torch.eye(sums.shape[-1], device=sums.device) * energy
    return _create_problem([target], norms_GF, gram_GFF)


def split_by_expert(target: Target, problem: Problem, *, unused: Collection[int]) -> list[Problem]:
    """Split the problem of stacked experts into one for each, which prunes its share of the units.

    Args:
        target: The layer.
        problem: Its problem.
        unused: Experts without inputs, whose units are ranked by the weights alone.
    """
    total, (outputs, positions, inputs) = problem.weight.shape[0], target.selector.view.canonical_shape
    view = WeightView(shape=(outputs // total, positions, inputs), output_axes=(0,), kernel_axes=(1,), input_axes=(2,))
    problems = []
    for expert in range(total):
        part = slice(expert, expert + 1)
        count = target.selector.prune * (expert + 1) // total - target.selector.prune * expert // total
        reduction = target.pattern.config.criterion_reduce_type if expert in unused else target.selector.reduction
        selector = Selector(target.selector.pattern, view, count, reduction)
        layer = LayerRows(name=target.name, rows=(0, outputs // total), selector=selector, criterion=target.score)
        gram_GFF = None if problem.gram is None else problem.gram[part].clone()
        weight_GRF = problem.weight[part].clone()
        problems.append(Problem(weight=weight_GRF, norms=problem.norms[part], gram=gram_GFF, layers=[layer]))
    return problems


def build_blind_problem(target: Target, *, with_gram: bool) -> Problem:
    """Build the problem of a layer with unknown inputs: all features count the same, and are uncorrelated."""
    reduction = target.pattern.config.criterion_reduce_type
    target = replace(target, selector=replace(target.selector, reduction=reduction))
    view = target.selector.view
    features = view.canonical_shape[1] * view.canonical_shape[2]
    device = target.weight.parameter.device
    gram = torch.eye(features, device=device).expand(view.groups, -1, -1).clone() if with_gram else None
    return _create_problem([target], torch.ones(view.groups, features, device=device), gram)


def _create_problem(targets: list[Target], norms_GF: torch.Tensor, gram_GFF: torch.Tensor | None) -> Problem:
    row, layers, weights = 0, [], []
    for target in targets:
        weight_GRF = target.read_matrix()
        rows = (row, row + weight_GRF.shape[1])
        layers.append(LayerRows(name=target.name, rows=rows, selector=target.selector, criterion=target.score))
        weights.append(weight_GRF)
        row = rows[1]
    return Problem(weight=torch.cat(weights, dim=1).clone(), norms=norms_GF, gram=gram_GFF, layers=layers)


def write_solution(targets: list[Target], problem: Problem, solution: Solution) -> dict[str, torch.Tensor]:
    """Write a solution into the model, and return layer → mask in the weight's stored shape."""
    masks = {}
    for target, layer in zip(targets, problem.layers, strict=True):
        rows = slice(*layer.rows)
        weight = target.weight
        before, after, mask = (
            target.to_stored(array[:, rows]) for array in (problem.weight, solution.weight, solution.keep)
        )
        # Weights that did not change keep their exact bits, which float32 may not represent.
        weight.stored.copy_(torch.where(after == before, weight.stored, after))
        weight.mask = masks[target.name] = mask
        weight.apply_mask()
    return masks
