"""The work of a stage in independent jobs: layers that read the same inputs, or stacked experts of one layer."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from secateur.distributed.pytorch.team import Team
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.calibration.expert_statistics import ExpertStatistics
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.targets import (
    Target,
    build_blind_problem,
    build_experts_problem,
    build_problem,
    split_by_expert,
    write_solution,
)
from secateur.solvers.magnitude import Magnitude
from secateur.solvers.problem import Problem, Solution

__all__ = ["JobResult", "LayerJob", "assign_costs", "create_jobs", "run_jobs"]


@dataclass
class JobResult:
    """The results of one or several jobs.

    Attributes:
        masks: Layer → its mask, in the weight's stored shape.
        errors: Layer → relative error of its outputs.
        blind: Layer → why all or part of it was pruned by magnitude.
        seconds: Time spent in the solver and in layer refiners.
    """

    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    blind: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: JobResult) -> None:
        """Add the result of another job."""
        self.masks |= other.masks
        self.errors |= other.errors
        self.blind |= other.blind
        self.seconds += other.seconds


class LayerJob(ABC):
    """Layers that are solved together.

    Args:
        targets: The layers.
        recipe: The solver and the refiners.
    """

    def __init__(self, targets: Sequence[Target], recipe: Recipe) -> None:
        self.targets = list(targets)
        self._recipe = recipe
        self._seconds = 0.0

    @cached_property
    def cost(self) -> int:
        """An estimate of the work, to be compared with that of other jobs of the same recipe only.

        With Gram matrices, it is the product of each row with the inverse, and the inverse itself.
        """
        view = self.targets[0].selector.view
        rows = sum(target.selector.view.canonical_shape[0] for target in self.targets)
        width = view.canonical_shape[1] * view.canonical_shape[2]
        return (rows + view.groups * width) * width**2 if self._recipe.needs_gram else rows * width

    @abstractmethod
    def run(self) -> JobResult:
        """Solve for the layers, and write their new weights into the model."""

    def _solve(self, problem: Problem) -> Solution:
        start = time.perf_counter()
        with allow_interrupts():
            solution = self._recipe.layer_solver.solve(problem)
            for refiner in self._recipe.layer_refiners:
                solution = refiner.refine(problem, solution)
        self._seconds += time.perf_counter() - start
        return solution


class InputJob(LayerJob):
    """Layers that read the same inputs.

    Args:
        targets: The layers.
        recipe: The solver and the refiners.
        statistics: The statistics of their inputs.
    """

    def __init__(self, targets: Sequence[Target], recipe: Recipe, statistics: InputStatistics) -> None:
        super().__init__(targets, recipe)
        self._statistics = statistics

    def run(self) -> JobResult:
        """See `LayerJob.run`."""
        problem = build_problem(self.targets, self._statistics)
        solution = self._solve(problem)
        errors = problem.errors_per_layer(solution.weight)
        return JobResult(write_solution(self.targets, problem, solution), errors, {}, self._seconds)


class ExpertsJob(LayerJob):
    """The stacked experts of one layer, each of which is a separate problem.

    Args:
        target: The layer.
        recipe: The solver and the refiners.
        experts: The statistics of the inputs of each expert.
    """

    def __init__(self, target: Target, recipe: Recipe, experts: ExpertStatistics) -> None:
        super().__init__([target], recipe)
        self._experts = experts

    def run(self) -> JobResult:
        """See `LayerJob.run`; experts with unknown inputs are pruned by magnitude."""
        [target] = self.targets
        result = JobResult()
        if (reason := self._experts.find_reason(target.name)) is not None:
            result.blind[target.name] = reason
            problem = build_blind_problem(target, with_gram=False)
            solution = Magnitude().solve(problem)
        else:
            problem = build_experts_problem(target, self._experts)
            solution = self._solve_experts(target, problem, result)
        result.masks |= write_solution([target], problem, solution)
        result.seconds = self._seconds
        return result

    def _solve_experts(self, target: Target, problem: Problem, result: JobResult) -> Solution:
        """Solve for each expert, and add their error, and which of them are pruned by magnitude."""
        name, parts, lost, total = target.name, [], 0.0, 0.0
        if unused := self._experts.find_unused_experts(name):
            result.blind[name] = self._experts.describe_unused(name)
        for expert, part in enumerate(split_by_expert(target, problem, unused=unused)):
            solution = Magnitude().solve(part) if expert in unused else self._solve(part)
            parts.append(solution)
            if expert not in unused:
                lost += float(part.energy(part.weight - solution.weight).sum())
                total += float(part.energy(part.weight).sum())
        if total > 0:
            result.errors[name] = lost / total
        return Solution(
            weight=torch.cat([part.weight for part in parts]), keep=torch.cat([part.keep for part in parts])
        )


def create_jobs(
    targets: Sequence[Target], recipe: Recipe, statistics: InputStatistics, experts: ExpertStatistics
) -> list[LayerJob]:
    """Create the jobs that prune the layers of a stage.

    Raises:
        CalibrationError: The inputs of a layer are unsuitable.
    """
    by_name = {target.name: target for target in targets}
    groups = [[by_name[name] for name in names] for names in statistics.group_layers()]
    jobs: list[LayerJob] = [InputJob(group, recipe, statistics) for group in groups]
    return jobs + [ExpertsJob(by_name[name], recipe, experts) for name in experts.layers]


def run_jobs(jobs: Sequence[LayerJob], team: Team) -> JobResult:
    """Run each job on one rank, and write its results into the models of all ranks.

    Raises:
        RankError: Another rank has failed or exited.
    """
    owners = assign_costs([job.cost for job in jobs], team.size)
    found = {number: job.run() for number, job in enumerate(jobs) if owners[number] == team.rank}
    # Before the weights are sent, so that a failure is known.
    answers = team.gather({number: (part.errors, part.blind, part.seconds) for number, part in found.items()})
    total = JobResult(seconds=max(sum(seconds for _, _, seconds in answer.values()) for answer in answers))
    for number, job in enumerate(jobs):
        errors, blind, _ = answers[owners[number]][number]
        weights = {target.name: target.weight.stored for target in job.targets}
        masks = {name: torch.empty_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        masks = found[number].masks if number in found else masks
        team.copy([*weights.values(), *masks.values()], source=owners[number])
        total.add(JobResult(masks, errors, blind))
    return total


def assign_costs(costs: Sequence[int], ranks: int) -> list[int]:
    """Assign jobs to ranks so that the largest sum of costs is small: each job to the least loaded rank, largest first.

    Returns:
        The rank of each job.

    Examples:
        >>> assign_costs([1, 5, 2, 3], 2)
        [0, 0, 1, 1]
    """
    owners, loads = [0] * len(costs), [0] * ranks
    for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
        owners[job] = loads.index(min(loads))
        loads[owners[job]] += costs[job]
    return owners
