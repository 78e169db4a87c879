"""The layers to be pruned: the weight of each, how to decide on it, and how much of it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from secateur.criteria import get_criterion
from secateur.errors import ConfigError
from secateur.frameworks.view import WeightView
from secateur.masking.checks import refuse_violations
from secateur.masking.pytorch import ParameterWeight
from secateur.masking.run import Run
from secateur.oneshot.pytorch.input_statistics import InputStatistics
from secateur.patterns import BasePattern, get_pattern
from secateur.planning.resolve import Plan
from secateur.results import LayerResult
from secateur.solvers.base import Solver
from secateur.solvers.magnitude import Magnitude
from secateur.solvers.problem import LayerRows, Problem, Solution
from secateur.solvers.selector import Selector

__all__ = ["Target", "build_targets", "make_problem", "write"]


ALONE = {
    "pruning_scope": "local",
    "target_sparsity": None,
    "min_sparsity_ratio_per_op": 0.0,
    "max_sparsity_ratio_per_op": 1.0,
}
"""Settings of one layer whose count is decided: the shares and bounds that led to it no longer matter."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One layer to be pruned.

    Attributes:
        name: The layer's name in the model.
        module: The layer.
        pattern: The pattern, bound to this layer alone.
        selector: Chooses what stays.
    """

    name: str
    module: nn.Module
    pattern: BasePattern
    selector: Selector

    @property
    def weight(self) -> ParameterWeight:
        """The weight, as it is now."""
        return ParameterWeight(self.name, self.pattern)

    def matrix(self) -> torch.Tensor:
        """The weight in float32: groups × output channels of one × input features."""
        canonical = self.weight.canonical().float()
        groups = self.pattern.views[self.name].groups
        return canonical.reshape(groups, canonical.shape[0] // groups, -1)

    def stored(self, array_GRF: torch.Tensor) -> torch.Tensor:
        """The inverse, for weights and for masks."""
        view = self.pattern.views[self.name]
        found: torch.Tensor = view.stored(array_GRF.reshape(view.canonical_shape))
        return found

    def score(self, weight_OKI: torch.Tensor) -> torch.Tensor:
        """What the configuration ranks by, without calibration."""
        criterion = get_criterion(self.pattern.config, self.name)
        found = criterion.score(self.pattern.framework.to_array(weight_OKI), None)
        return torch.as_tensor(found, device=weight_OKI.device)

    def verified(self, mask: torch.Tensor) -> LayerResult:
        """What was pruned.

        Raises:
            StateError: Mask or weight are not as the pattern says.
        """
        weight = self.weight
        weight.mask = mask
        run = Run(self.pattern, {self.name: weight})
        run.group.asked = self.selector.sparsity
        refuse_violations(run.violations())
        return run.results()[0]


def build_targets(plan: Plan, counts: Mapping[str, int], solver: Solver) -> dict[str, Target]:
    """The layers that have a count, in the model's order.

    Args:
        plan: The plan.
        counts: Layer that the plan prunes → how many of its units go, as the pattern's budget counts them.
        solver: Decides how the scores of a unit's weights become one.
    """
    patterns = {name: pattern for pattern in plan.patterns for name in pattern.views}
    return {
        row.name: _target(row.name, patterns[row.name], counts[row.name], solver)
        for row in plan.layers
        if row.name in counts
    }


def _target(name: str, pattern: BasePattern, count: int, solver: Solver) -> Target:
    if pattern.config.kind == "pattern_lock":
        raise ConfigError(
            f"layer {name!r}: kind='pattern_lock' keeps the zeros that are there, so there is nothing to solve. Use "
            f"secateur.prepare to train with it."
        )
    if pattern.config.keep_zeros:
        raise ConfigError(
            f"layer {name!r}: keep_zeros=True cannot be kept to by a solver, which decides on all weights anew. Leave "
            f"it out, or prune without calibration data."
        )
    config, module, view = pattern.config, pattern.modules[name], pattern.views[name]
    single = get_pattern(config.model_copy(update=ALONE), {name: module})
    canonical = WeightView(
        shape=view.canonical_shape, output_axes=(0,), kernel_axes=(1,), input_axes=(2,), groups=view.groups
    )
    reduction = config.criterion_reduce_type if isinstance(solver, Magnitude) else "sum"
    selector = Selector(config.pattern, canonical, count, reduction)
    return Target(name=name, module=module, pattern=single, selector=selector)


def make_problem(targets: list[Target], statistics: InputStatistics) -> Problem:
    """The problem of layers that read the same inputs."""
    first, row, parts, weights = targets[0].name, 0, [], []
    for target in targets:
        weight_GRF = target.matrix()
        rows = (row, row + weight_GRF.shape[1])
        parts.append(LayerRows(name=target.name, rows=rows, selector=target.selector, criterion=target.score))
        weights.append(weight_GRF)
        row = rows[1]
    norms_GF = statistics.norms(first)
    return Problem(
        weight=torch.cat(weights, dim=1).clone(),
        norms=norms_GF,
        gram=statistics.pop_gram(first),
        parts=parts,
    )


def write(targets: list[Target], problem: Problem, solution: Solution) -> dict[str, torch.Tensor]:
    """Put what was found into the model; returns layer → mask in the weight's stored shape."""
    masks = {}
    for target, part in zip(targets, problem.parts, strict=True):
        rows = slice(*part.rows)
        weight = target.weight
        before, after, mask = (
            target.stored(array[:, rows]) for array in (problem.weight, solution.weight, solution.keep)
        )
        # What is as before stays so to the last bit, which float32 may not hold.
        weight.stored.copy_(torch.where(after == before, weight.stored, after))
        weight.mask = masks[target.name] = mask
        weight.apply_mask()
    return masks
