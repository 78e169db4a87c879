"""Prune a model stage by stage, each with the outputs of the pruned stages before it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict

import torch
from torch import nn

from secateur.frameworks.pytorch import StackedWeight
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.activations import Activations
from secateur.oneshot.pytorch.expert_statistics import ExpertStatistics
from secateur.oneshot.pytorch.input_statistics import InputStatistics
from secateur.oneshot.pytorch.stage_loop import StageLoop
from secateur.oneshot.pytorch.stages import BlockStage, Stage
from secateur.oneshot.pytorch.targets import (
    Target,
    build_blind_problem,
    build_experts_problem,
    build_problem,
    split_by_expert,
    write_solution,
)
from secateur.refiners.base import BlockTask
from secateur.solvers.magnitude import Magnitude
from secateur.solvers.problem import Problem, Solution

__all__ = ["StageRunner", "collect_statistics", "iterate_problems"]


class StageRunner(StageLoop[Stage]):
    """Prunes the layers of a model stage by stage; see `StageLoop`."""

    def prune_stage(self, number: int, stage: Stage) -> None:
        """See `StageLoop.prune_stage`."""
        with closing(Activations(self.execution.offload)) as outputs:
            self._prune_with(outputs, number, stage)

    def _prune_with(self, outputs: Activations, number: int, stage: Stage) -> None:
        targets = {target.name: target for target in stage.targets}
        stored = outputs if self.recipe.block_refiners else None
        statistics, experts = collect_statistics(stage, with_gram=self.recipe.needs_gram, outputs=stored)
        parameters = self.list_parameters(stage)
        self.record.back_up(number, parameters)
        masks: dict[str, torch.Tensor] = {}
        errors: dict[str, float] = {}
        seconds = 0.0
        for names in statistics.group_layers():
            group = [targets[name] for name in names]
            problem = build_problem(group, statistics)
            start = time.perf_counter()
            solution = self._solve(problem)
            seconds += time.perf_counter() - start
            errors |= problem.errors_per_layer(solution.weight)
            masks |= write_solution(group, problem, solution)
        blind: dict[str, str] = {}
        for name in experts.layers:
            start = time.perf_counter()
            problem, solution = self._solve_experts(targets[name], experts, errors, blind)
            seconds += time.perf_counter() - start
            masks |= write_solution([targets[name]], problem, solution)
        if isinstance(stage, BlockStage):
            for refiner in self.recipe.block_refiners:
                refiner.refine(self._build_block_task(stage, masks, outputs))
        results = {name: asdict(targets[name].verify(mask)) for name, mask in masks.items()}
        outcome = {"results": results, "errors": errors, "blind": blind, "seconds": seconds}
        self.outcome.add(outcome)
        self.record.commit(number, parameters, outcome)

    def _solve_experts(
        self, target: Target, experts: ExpertStatistics, errors: dict[str, float], blind: dict[str, str]
    ) -> tuple[Problem, Solution]:
        """Solve for stacked experts, and add their error, and why some or all of them are pruned by magnitude."""
        name = target.name
        if (reason := experts.find_reason(name)) is not None:
            blind[name] = reason
            problem = build_blind_problem(target, with_gram=False)
            return problem, Magnitude().solve(problem)
        if unused := experts.find_unused_experts(name):
            blind[name] = experts.describe_unused(name)
        problem, parts, lost, total = build_experts_problem(target, experts), [], 0.0, 0.0
        for expert, part in enumerate(split_by_expert(target, problem, unused=unused)):
            solution = Magnitude().solve(part) if expert in unused else self._solve(part)
            parts.append(solution)
            if expert not in unused:
                lost += float(part.energy(part.weight - solution.weight).sum())
                total += float(part.energy(part.weight).sum())
        if total > 0:
            errors[name] = lost / total
        return problem, Solution(
            weight=torch.cat([part.weight for part in parts]), keep=torch.cat([part.keep for part in parts])
        )

    def _solve(self, problem: Problem) -> Solution:
        with allow_interrupts():
            solution = self.recipe.layer_solver.solve(problem)
            for refiner in self.recipe.layer_refiners:
                solution = refiner.refine(problem, solution)
        return solution

    def _build_block_task(
        self, stage: BlockStage, masks: Mapping[str, torch.Tensor], outputs: Activations
    ) -> BlockTask:
        by_id = {id(target.weight.parameter): masks[target.name] for target in stage.targets}
        return BlockTask(
            block=stage.module,
            masks={name: by_id[id(weight)] for name, weight in stage.module.named_parameters() if id(weight) in by_id},
            forward=stage.forward,
            inputs=stage.inputs,
            outputs=outputs,
            keeps=[batch.keep for batch in stage.batches],
        )

    def list_parameters(self, stage: Stage) -> dict[str, torch.Tensor]:
        """See `StageLoop.list_parameters`."""
        parameters = [target.weight.parameter for target in stage.targets]
        if self.recipe.block_refiners and isinstance(stage, BlockStage):
            parameters = list(stage.module.parameters())
        return self.name_parameters(parameters)


def iterate_problems(
    stages: Sequence[Stage], inputs: Activations, *, with_gram: bool
) -> Iterator[tuple[str, Sequence[Problem]]]:
    """Run the dense model once, and yield the name of each stage and the problems of its layers.

    Args:
        stages: The stages.
        inputs: Stores the inputs of the next stage.
        with_gram: Whether Gram matrices are needed; else norms are enough.
    """
    for stage in stages:
        targets = {target.name: target for target in stage.targets}
        with stage.load_weights():
            statistics, experts = collect_statistics(stage, with_gram=with_gram, outputs=inputs)
            groups = statistics.group_layers()
            problems = [build_problem([targets[name] for name in names], statistics) for names in groups]
            problems += [
                build_experts_problem(targets[name], experts)
                if experts.find_reason(name) is None
                else build_blind_problem(targets[name], with_gram=with_gram)
                for name in experts.layers
            ]
        yield stage.name, problems


def collect_statistics(
    stage: Stage, *, with_gram: bool, outputs: Activations | None
) -> tuple[InputStatistics, ExpertStatistics]:
    """Run the calibration data through a dense stage once, and collect the input statistics of its layers.

    Args:
        stage: The stage.
        with_gram: Whether Gram matrices are needed; else norms are enough.
        outputs: Where to store the outputs of the stage, if it has any; ``None``: do not store them.
    """
    layers = {target.name: target.module for target in stage.targets if isinstance(target.module, nn.Module)}
    stacked = {target.name: target.module for target in stage.targets if isinstance(target.module, StackedWeight)}
    statistics, experts = InputStatistics(layers, with_gram=with_gram), ExpertStatistics(stacked, with_gram=with_gram)
    with statistics.record_inputs(), experts.record_inputs():
        for batch in stage.batches:
            statistics.start_batch(batch.keep)
            experts.start_batch(batch.keep)
            output = stage.forward(batch.number)
            if outputs is not None and output is not None:
                outputs[batch.number] = output
    return statistics, experts
