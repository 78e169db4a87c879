"""A calibrated run from beginning to end: stage after stage, each fed with what the pruned ones before it give out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.oneshot.execution import Execution, Progress
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.activations import Activations
from secateur.oneshot.pytorch.input_statistics import InputStatistics
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.resume import RunRecord
from secateur.oneshot.pytorch.stages import BlockStage, Stage
from secateur.oneshot.pytorch.targets import Target, make_problem, write_solution
from secateur.refiners.base import BlockTask
from secateur.results import LayerResult
from secateur.solvers.problem import Problem, Solution

__all__ = ["Outcome", "StageRunner", "survey"]


@dataclass
class Outcome:
    """What all stages so far have found.

    Attributes:
        results: Layer → what was pruned.
        errors: Layer → relative error of its outputs.
        solver_seconds: Time in solvers.
    """

    results: dict[str, LayerResult] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    solver_seconds: float = 0.0


class StageRunner:
    """Prunes stage after stage.

    Args:
        model: The model.
        recipe: How to prune.
        journal: What is written on disk.
        execution: Where the inputs of the next stage are stored, and whom to tell of progress.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, journal: RunRecord, execution: Execution) -> None:
        self.model = model
        self.recipe = recipe
        self.journal = journal
        self.execution = execution
        self.outcome = Outcome()

    def run(self, stages: Sequence[Stage]) -> Outcome:
        """Prune all stages, or go on where the journal ends."""
        start, fresh = time.perf_counter(), 0
        for number, stage in enumerate(stages):
            with stage.opened():
                if not self._resumed(number, stage):
                    self._prune(number, stage)
                    fresh += 1
                if self._is_read(stages, number):
                    stage.advance()
            self._report(stage.name, (number + 1, len(stages)), time.perf_counter() - start, fresh)
        return self.outcome

    def _is_read(self, stages: Sequence[Stage], number: int) -> bool:
        """Whether a stage behind this one is to be pruned yet, and reads what this one gives out."""
        return any(
            stage.targets and not self.journal.is_done(later)
            for later, stage in enumerate(stages[number + 1 :], start=number + 1)
        )

    def _report(self, name: str, done: tuple[int, int], seconds: float, fresh: int) -> None:
        if self.execution.progress is not None:
            left = (done[1] - done[0]) * seconds / max(fresh, 1)
            step = Progress(stage=name, done=done[0], total=done[1], seconds=seconds, seconds_left=left)
            with allow_interrupts():
                self.execution.progress(step)

    def _prune(self, number: int, stage: Stage) -> None:
        with closing(Activations(self.execution.offload)) as outputs:
            self._prune_with(outputs, number, stage)

    def _prune_with(self, outputs: Activations, number: int, stage: Stage) -> None:
        targets = {target.name: target for target in stage.targets}
        statistics = self._collected(stage, targets, outputs)
        changed = self._changed(stage)
        self.journal.back_up(number, changed)
        masks: dict[str, torch.Tensor] = {}
        errors: dict[str, float] = {}
        seconds = 0.0
        for names in statistics.groups():
            group = [targets[name] for name in names]
            problem = make_problem(group, statistics)
            began = time.perf_counter()
            solution = self._solved(problem)
            seconds += time.perf_counter() - began
            errors |= problem.errors_per_layer(solution.weight)
            masks |= write_solution(group, problem, solution)
        if isinstance(stage, BlockStage):
            for refiner in self.recipe.block_refiners:
                refiner.refine(self._block_task(stage, masks, outputs))
        found = {name: asdict(targets[name].verify(mask)) for name, mask in masks.items()}
        self._note(found, errors, seconds)
        self.journal.commit(number, changed, {"results": found, "errors": errors, "seconds": seconds})

    def _collected(self, stage: Stage, targets: Mapping[str, Target], outputs: Activations) -> InputStatistics:
        """One pass of the calibration data through a stage that is dense yet."""
        modules = {name: target.module for name, target in targets.items()}
        statistics = InputStatistics(modules, with_gram=self.recipe.needs_gram)
        with statistics.record_inputs():
            for batch in stage.batches:
                statistics.start_batch(batch.keep)
                given = stage.forward(batch.number)
                if self.recipe.block_refiners and given is not None:
                    outputs[batch.number] = given
        return statistics

    def _solved(self, problem: Problem) -> Solution:
        with allow_interrupts():
            solution = self.recipe.solver.solve(problem)
            for refiner in self.recipe.layer_refiners:
                solution = refiner.refine(problem, solution)
        return solution

    def _block_task(self, stage: BlockStage, masks: Mapping[str, torch.Tensor], outputs: Activations) -> BlockTask:
        held = {id(target.weight.parameter): masks[target.name] for target in stage.targets}
        return BlockTask(
            block=stage.module,
            masks={name: held[id(weight)] for name, weight in stage.module.named_parameters() if id(weight) in held},
            forward=stage.forward,
            inputs=stage.inputs,
            outputs=outputs,
            keeps=[batch.keep for batch in stage.batches],
        )

    def _changed(self, stage: Stage) -> dict[str, torch.Tensor]:
        """Name → every parameter that pruning the stage may change."""
        parameters = [target.weight.parameter for target in stage.targets]
        if self.recipe.block_refiners and isinstance(stage, BlockStage):
            parameters = list(stage.module.parameters())
        names = {id(held): name for name, held in self.model.named_parameters()}
        return {names[id(parameter)]: parameter.detach() for parameter in parameters}

    def _resumed(self, number: int, stage: Stage) -> bool:
        found = self.journal.resume(number, self._changed(stage)) if stage.targets else {}
        if found:
            self._note(found["results"], found["errors"], found["seconds"])
        return found is not None

    def _note(self, results: Mapping[str, Mapping[str, Any]], errors: Mapping[str, float], seconds: float) -> None:
        for name, values in results.items():
            self.outcome.results[name] = LayerResult(**{**values, "shape": tuple(values["shape"])})
        self.outcome.errors |= errors
        self.outcome.solver_seconds += seconds


def survey(stages: Sequence[Stage], inputs: Activations, *, with_gram: bool) -> Iterator[tuple[str, Sequence[Problem]]]:
    """Part by part: its name, and the problems of the layers in it. The model stays as it is.

    Args:
        stages: The parts.
        inputs: Holds what the next part reads.
        with_gram: Whether Gram matrices are needed, rather than norms.
    """
    for stage in stages:
        with stage.opened():
            own = {target.name: target for target in stage.targets}
            modules = {name: target.module for name, target in own.items()}
            statistics = InputStatistics(modules, with_gram=with_gram)
            with statistics.record_inputs():
                for batch in stage.batches:
                    statistics.start_batch(batch.keep)
                    given = stage.forward(batch.number)
                    if given is not None:
                        inputs[batch.number] = given
            groups = statistics.groups()
            problems = [make_problem([own[name] for name in names], statistics) for names in groups]
        yield stage.name, problems
