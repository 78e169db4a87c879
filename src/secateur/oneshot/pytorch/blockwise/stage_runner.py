"""Prune a model stage by stage, each with the outputs of the pruned stages before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict

import torch
from torch import nn

from secateur.distributed.pytorch.team import Team
from secateur.frameworks.pytorch import StackedWeight
from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.blockwise.shortcut import Shortcut
from secateur.oneshot.pytorch.blockwise.stage_loop import StageLoop
from secateur.oneshot.pytorch.blockwise.stages import Stage
from secateur.oneshot.pytorch.calibration.expert_statistics import ExpertStatistics
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.oneshot.pytorch.calibration.int8_products import Int8Products, has_fast_int8
from secateur.oneshot.pytorch.layer_jobs import create_jobs, run_jobs
from secateur.oneshot.pytorch.targets import build_blind_problem, build_experts_problem, build_problem
from secateur.solvers.problem import Problem

__all__ = ["StageRunner", "collect_statistics", "iterate_problems"]


class StageRunner(StageLoop[Stage]):
    """Prunes the layers of a model stage by stage; see `StageLoop`."""

    def prune_stage(self, number: int, stage: Stage) -> None:
        """See `StageLoop.prune_stage`."""
        with self.choose_products():
            statistics, experts = collect_statistics(stage, self.team, with_gram=self.recipe.needs_gram, outputs=None)
        parameters = self.list_parameters(stage)
        self.record.back_up(number, parameters)
        solved = run_jobs(create_jobs(stage.targets, self.recipe, statistics, experts), self.team)
        targets = {target.name: target for target in stage.targets}
        self.refine_block(stage, {id(targets[name].weight.parameter): mask for name, mask in solved.masks.items()})
        results = {name: asdict(targets[name].verify(mask)) for name, mask in solved.masks.items()}
        outcome = {"results": results, "errors": solved.errors, "blind": solved.blind, "seconds": solved.seconds}
        self.outcome.add(outcome)
        self.record.commit(number, parameters, outcome)

    def choose_products(self) -> AbstractContextManager[object]:
        """See `StageLoop.choose_products`; refiners of blocks compare with dense blocks, which are not rounded."""
        is_allowed = self.execution.allow_int8 and not self.runs_dense
        return Int8Products() if is_allowed and has_fast_int8() else nullcontext()

    def list_parameters(self, stage: Stage) -> dict[str, torch.Tensor]:
        """See `StageLoop.list_parameters`."""
        parameters = [target.weight.parameter for target in stage.targets]
        if self.recipe.block_refiners and stage.block:
            parameters = list(stage.module.parameters())
        return self.name_parameters(parameters)


def iterate_problems(
    stages: Sequence[Stage], inputs: Activations, team: Team, *, with_gram: bool
) -> Iterator[tuple[str, Sequence[Problem]]]:
    """Run the dense model once, and yield the name of each stage and the problems of its layers.

    Args:
        stages: The stages.
        inputs: Stores the inputs of the next stage.
        team: The ranks that share the calibration data.
        with_gram: Whether Gram matrices are needed; otherwise, norms are enough.
    """
    for stage in stages:
        targets = {target.name: target for target in stage.targets}
        with stage.load_weights():
            statistics, experts = collect_statistics(stage, team, with_gram=with_gram, outputs=inputs)
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
    stage: Stage, team: Team, *, with_gram: bool, outputs: Activations | None
) -> tuple[InputStatistics, ExpertStatistics]:
    """Run the calibration data through a dense stage once, and collect the input statistics of its layers.

    Args:
        stage: The stage.
        team: The ranks that share the calibration data; each receives the statistics of all batches.
        with_gram: Whether Gram matrices are needed; otherwise, norms are enough.
        outputs: Where to store the outputs of the stage, if it has any; ``None``: they are not needed, and each batch
            only runs up to the last of the layers.
    """
    layers = {target.name: target.module for target in stage.targets if isinstance(target.module, nn.Module)}
    stacked = {target.name: target.module for target in stage.targets if isinstance(target.module, StackedWeight)}
    statistics, experts = InputStatistics(layers, with_gram=with_gram), ExpertStatistics(stacked, with_gram=with_gram)
    shortcut = Shortcut(layers.values() if outputs is None and not stacked else ())
    with statistics.record_inputs(), experts.record_inputs(), shortcut.watch_calls():
        for batch in stage.batches:
            statistics.start_batch(batch.keep)
            experts.start_batch(batch.keep)
            output = shortcut.run(stage, batch)
            if outputs is not None and output is not None:
                outputs[batch.number] = output
    statistics.add_other_ranks(team)
    experts.add_other_ranks(team)
    return statistics, experts
