"""Prune the stages of a run one after another, or resume after the finished ones."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from secateur.distributed.pytorch.team import Team
from secateur.oneshot.execution import Execution, Progress
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.blockwise.dense_stream import DenseStream
from secateur.oneshot.pytorch.blockwise.stages import BlockStage
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.resume import RunRecord
from secateur.oneshot.report import Phase
from secateur.refiners.base import BlockTask
from secateur.results import LayerResult

__all__ = ["Outcome", "StageLoop", "report_progress"]


@dataclass
class Outcome:
    """The results of all stages so far.

    Attributes:
        results: Layer → what was pruned; units are described by `removed` instead.
        errors: Layer → relative error of its outputs.
        blind: Layer → why its inputs were not measured.
        removed: Group → the units that were removed.
        solver_seconds: Time spent in solvers.
        phases: Where the time went.
    """

    results: dict[str, LayerResult] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    blind: dict[str, str] = field(default_factory=dict)
    removed: dict[str, list[int]] = field(default_factory=dict)
    solver_seconds: float = 0.0
    phases: list[Phase] = field(default_factory=list)

    def add(self, stage: Mapping[str, Any]) -> None:
        """Add the results of one stage, as they are recorded."""
        for name, values in stage.get("results", {}).items():
            self.results[name] = LayerResult(**{**values, "shape": tuple(values["shape"])})
        self.errors |= stage["errors"]
        self.blind |= stage.get("blind", {})  # files of earlier versions lack it
        self.removed |= stage.get("removed", {})
        self.solver_seconds += stage["seconds"]


class LoopStage(Protocol):
    """A part of a model whose pruning is recorded as a whole."""

    @property
    def name(self) -> str:
        """Its name in progress reports."""

    @property
    def has_work(self) -> bool:
        """Whether anything in it is pruned."""

    @property
    def block(self) -> BlockStage | None:
        """Itself or its part, if that is a block of a stack."""

    def load_weights(self) -> AbstractContextManager[object]:
        """Load the weights onto the device that runs the stage, within this context."""

    def advance(self) -> None:
        """Pass the current outputs on to the next stage."""


AnyStage = TypeVar("AnyStage", bound=LoopStage)


class StageLoop(ABC, Generic[AnyStage]):
    """Prunes a model stage by stage.

    Args:
        model: The model.
        recipe: How to prune.
        record: The record of the run on disk.
        execution: Where to store the inputs of the next stage, and the progress callback.
        team: The ranks that prune together; by default one process.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, record: RunRecord, execution: Execution, team: Team | None = None
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.record = record
        self.execution = execution
        self.team = team or Team()
        self.outcome = Outcome()
        self.dense = DenseStream(execution.offload)
        self._block_share = 1.0

    def run(self, stages: Sequence[AnyStage]) -> Outcome:
        """Prune all stages, or resume after the finished ones."""
        start, pruned_here = time.perf_counter(), 0
        total = len(stages) + bool(self.recipe.model_refiners)
        self._block_share = 1 / max(1, sum(stage.has_work and stage.block is not None for stage in stages))
        with self.dense:
            if self.runs_dense and (block := next(filter(None, (stage.block for stage in stages)), None)):
                self.dense.start(block)
            for number, stage in enumerate(stages):
                with stage.load_weights():
                    pruned_here += self._run_stage(stages, number)
                self._report_progress(stage.name, (number + 1, total), time.perf_counter() - start, pruned_here)
        self.outcome.phases.append(Phase(name="layers and blocks", seconds=time.perf_counter() - start))
        return self.outcome

    def _run_stage(self, stages: Sequence[AnyStage], number: int) -> bool:
        """Prune a stage or resume it, and pass its outputs on; returns whether it was pruned here."""
        stage, is_last = stages[number], not self._needs_outputs(stages, number)
        is_done = self.record.is_done(number)
        if self.runs_dense and stage.block and not (is_done and is_last):
            self.advance_dense(stage, stage.block)
            if self.recipe.block_refiners and not is_done:
                self.dense.run_shifted(stage.block)
        if is_new := not self._resume(number, stage):
            self.prune_stage(number, stage)
        if not is_last:
            with self.choose_products():
                stage.advance()
        return is_new

    def choose_products(self) -> AbstractContextManager[object]:
        """Return the context in which calibration data runs through a pruned stage."""
        return nullcontext()

    @property
    def runs_dense(self) -> bool:
        """Whether the dense blocks run alongside the pruned ones."""
        return bool(self.recipe.block_refiners)

    def advance_dense(self, stage: AnyStage, block: BlockStage) -> None:
        """Run the next dense block; `block` is that of the stage."""
        del stage
        self.dense.advance(block)

    def refine_block(self, stage: AnyStage, masks: Mapping[int, torch.Tensor]) -> None:
        """Run the refiners of blocks on a pruned stage.

        Args:
            stage: The stage.
            masks: Identity of each pruned parameter of the block → its mask.
        """
        if (block := stage.block) is None or not self.recipe.block_refiners:
            return
        names = {name: id(parameter) for name, parameter in block.module.named_parameters()}
        task = BlockTask(
            block=block.module,
            masks={name: masks[key] for name, key in names.items() if key in masks},
            forward=block.forward,
            inputs=self.dense.inputs,
            outputs=self.dense.outputs,
            shifted_outputs=self.dense.shifted_outputs,
            keeps={batch.number: batch.keep for batch in block.batches},
            team=self.team,
            total=sum(self.team.gather(len(block.batches))),
            time_share=self._block_share,
            clock=time.perf_counter,
        )
        for refiner in self.recipe.block_refiners:
            refiner.refine(task)
        self.team.gather(None)
        self.team.copy(list(self.list_parameters(stage).values()))

    @abstractmethod
    def prune_stage(self, number: int, stage: AnyStage) -> None:
        """Prune one stage, and record it."""

    @abstractmethod
    def list_parameters(self, stage: AnyStage) -> dict[str, torch.Tensor]:
        """Return name → parameter for all parameters that pruning the stage may change."""

    def resume_stage(self, saved: Mapping[str, Any]) -> None:
        """Complete a finished stage after its parameters were loaded, given its results."""

    def name_parameters(self, parameters: Sequence[nn.Parameter]) -> dict[str, torch.Tensor]:
        """Return name → parameter of the model."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {names[id(parameter)]: parameter.detach() for parameter in parameters}

    def _needs_outputs(self, stages: Sequence[AnyStage], number: int) -> bool:
        """Whether a later stage is not pruned yet and therefore reads the outputs of this one."""
        return any(
            stage.has_work and not self.record.is_done(later)
            for later, stage in enumerate(stages[number + 1 :], start=number + 1)
        )

    def _report_progress(self, name: str, done: tuple[int, int], seconds: float, pruned_here: int) -> None:
        left = (done[1] - done[0]) * seconds / max(pruned_here, 1)
        step = Progress(stage=name, done=done[0], total=done[1], seconds=seconds, seconds_left=left)
        report_progress(self.execution, self.team, step)

    def _resume(self, number: int, stage: AnyStage) -> bool:
        saved = self.record.resume(number, self.list_parameters(stage)) if stage.has_work else {}
        if saved:
            self.outcome.add(saved)
            self.resume_stage(saved)
        return saved is not None


def report_progress(execution: Execution, team: Team, step: Progress) -> None:
    """Call the callback for progress, if there is one, on rank 0."""
    if execution.progress is not None and team.is_leader:
        with allow_interrupts():
            execution.progress(step)
