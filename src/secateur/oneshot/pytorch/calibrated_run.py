"""Run pruning with calibration data on a torch model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur._wording import format_count
from secateur.allocations import AllocationTask, allocate
from secateur.errors import ConfigError
from secateur.frameworks.pytorch import get_parameter, unwrap_model
from secateur.oneshot.execution import Execution
from secateur.oneshot.interrupts import defer_interrupts
from secateur.oneshot.pytorch.activations import Activations
from secateur.oneshot.pytorch.batches import Batch, calibration_mode, hash_batches, read_batches
from secateur.oneshot.pytorch.checkpoint import CheckpointRecord
from secateur.oneshot.pytorch.input_features import refuse_unsupported
from secateur.oneshot.pytorch.memory_errors import explain_error
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.resume import OTHER_WEIGHTS, RunRecord
from secateur.oneshot.pytorch.sequences import regroup_by_sequences
from secateur.oneshot.pytorch.stage_runner import Outcome, StageRunner, iterate_problems
from secateur.oneshot.pytorch.stages import BlockStage, Stage, build_stages
from secateur.oneshot.pytorch.targets import Target, build_targets
from secateur.oneshot.pytorch.weight_storage import FileStorage, choose_storage
from secateur.oneshot.report import CalibratedReport
from secateur.patterns import BasePattern
from secateur.planning.planner import Plan
from secateur.refiners.base import ModelRefiner, ModelTask
from secateur.solvers.problem import Problem

__all__ = ["CalibratedRun"]


class CalibratedRun:
    """A pruning run with calibration data.

    Args:
        model: The model.
        plan: What to prune.
        recipe: How to prune.
        batches: The calibration data.
        execution: Where and how the run executes.

    Raises:
        SecateurError: The data or the layers are unsuitable.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, recipe: Recipe, batches: Iterable[Any], execution: Execution
    ) -> None:
        self.model = unwrap_model(model)
        self.plan = plan
        self.recipe = recipe
        self.execution = execution
        self.batches = read_batches(self.model, batches)
        self.storage = choose_storage(self.model, execution)
        if recipe.block_refiners or recipe.model_refiners:
            with calibration_mode(self.model):
                self.batches = regroup_by_sequences(self.model, self.batches, self.storage.default_device)
        self.inputs = Activations(execution.offload)
        for pattern in plan.patterns:
            for name in pattern.views:
                refuse_unsupported(name, pattern.modules[name])
        self.storage.check(plan, recipe)

    def prune(self) -> CalibratedReport:
        """Prune the model.

        Raises:
            SecateurError: The run fails. The model is unchanged in that case.
        """
        with defer_interrupts():
            start = time.perf_counter()
            record = self._open_record()
            try:
                with closing(self.inputs), closing(self.storage), calibration_mode(self.model):
                    outcome = self._prune(record)
                    record.complete()
            except BaseException as error:
                self._undo(record)
                explained = explain_error(error)
                explained.add_note(self._describe_state(record))
                if explained is error:
                    raise
                raise explained from error
            record.close(finished=not self.execution.keep_parts)
            report = self._build_report(outcome, time.perf_counter() - start)
            report.warn_of_magnitude()
            report.warn_of_nearly_empty_layers()
            return report

    def _undo(self, record: RunRecord) -> None:
        """Restore the model's dense weights; if that fails, their backup stays."""
        try:
            record.undo(self.model)
        except BaseException:
            record.abandon()
            raise
        record.close(finished=False)

    def _prune(self, record: RunRecord) -> Outcome:
        counts = self._allocate() if record.counts is None else record.counts
        targets = build_targets(self.plan, counts, self.recipe.solver)
        stages = self._build_stages(targets)
        if self.recipe.block_refiners and not any(isinstance(stage, BlockStage) for stage in stages):
            raise ConfigError(
                f"refine='block' needs a model with a stack of blocks that run one after another, and "
                f"{type(self.model).__name__} has none. Leave it out."
            )
        repair = ModelRepair(self.model, self.recipe.model_refiners, self.batches, self.storage.default_device)
        if not record.is_done(len(stages)):
            repair.record_dense()
        record.begin(counts)
        outcome = StageRunner(self.model, self.recipe, record, self.execution).run(stages)
        repair.refine(record, len(stages), targets)
        return outcome

    def _allocate(self) -> dict[str, int]:
        """Return layer → number of units to prune."""
        counts: dict[str, int] = {}
        for pattern in self.plan.patterns:
            if pattern.views:
                allocation = self.recipe.allocation
                task = AllocationTask(
                    pattern=pattern,
                    iterate_problems=partial(self._iterate_problems, pattern, allocation.needs),
                    load=partial(self._load, pattern),
                )
                counts |= allocate(allocation, task)
        return counts

    def _iterate_problems(self, pattern: BasePattern, needs: str) -> Iterator[tuple[str, Sequence[Problem]]]:
        counts = {name: pattern.budget.count_locally(name, pattern.target_sparsity) for name in pattern.budget.units}
        targets = build_targets(self.plan, counts, self.recipe.solver)
        stages = self._build_stages(targets)
        return iterate_problems(stages, self.inputs, with_gram=needs == "gram")

    def _load(self, pattern: BasePattern, layer: str) -> AbstractContextManager[object]:
        return self.storage.load(pattern.modules[layer])

    def _build_stages(self, targets: Mapping[str, Target]) -> list[Stage]:
        return build_stages(self.model, targets, self.batches, self.inputs, self.storage)

    def _open_record(self) -> RunRecord:
        folder, description = self.execution.folder, self._describe_run()
        if isinstance(self.storage, FileStorage):
            assert folder is not None
            return CheckpointRecord(folder, {**description, "storage": "files"}, self.storage)
        return RunRecord(folder, description)

    def _describe_run(self) -> dict[str, Any]:
        """Return plain values that identify this run, so that a folder of another run is refused."""
        layers = {row.name: list(row.shape) for row in self.plan.layers if row.is_pruned}
        config = self.plan.config.model_dump(mode="json")
        weights = {id(get_parameter(pattern.modules[name])) for pattern in self.plan.patterns for name in pattern.views}
        pruned = {name for name, tensor in self.model.named_parameters(remove_duplicate=False) if id(tensor) in weights}
        return {
            "config": config,
            "recipe": str(self.recipe),
            "layers": layers,
            "data": hash_batches(self.batches),
            OTHER_WEIGHTS: self.storage.hash_other_weights(pruned),
        }

    def _describe_state(self, record: RunRecord) -> str:
        if not record.is_resumable:
            return "The model is unchanged."
        done = format_count(record.count_finished(), "finished part")
        return (
            f"The model is unchanged. {record.folder} contains {done}: call again with the same arguments and the "
            f"same dense model to resume."
        )

    def _build_report(self, outcome: Outcome, seconds: float) -> CalibratedReport:
        order = [row.name for row in self.plan.layers if row.name in outcome.results]
        return CalibratedReport(
            layers=tuple(outcome.results[name] for name in order),
            dense=dict(self.plan.dense),
            step=0,
            last_step=0,
            model_weights=sum(weight.numel() for weight in self.model.parameters()),
            configs=tuple(pattern.config for pattern in self.plan.patterns if pattern.views),
            solver=str(self.recipe),
            errors=outcome.errors,
            magnitude_reasons=outcome.blind,
            solver_seconds=outcome.solver_seconds,
            seconds=seconds,
        )


class ModelRepair:
    """The refiners of the whole model, as the last stage of a run.

    Args:
        model: The model.
        refiners: The refiners in order, possibly none.
        batches: The calibration data.
        device: The device of the model.
    """

    def __init__(
        self, model: nn.Module, refiners: Sequence[ModelRefiner], batches: Sequence[Batch], device: torch.device
    ) -> None:
        self.model = model
        self.refiners = refiners
        self.batches = batches
        self.device = device
        self._dense: list[Any] = []

    def record_dense(self) -> None:
        """Record the outputs of the dense model, before anything is pruned."""
        self._dense = [refiner.targets(self.model, self.batches, self.device) for refiner in self.refiners]

    def refine(self, record: RunRecord, stage: int, targets: Mapping[str, Target]) -> None:
        """Refine the model, or resume from the record.

        Args:
            record: The record of the run on disk.
            stage: The number of this stage.
            targets: The pruned layers.
        """
        if not self.refiners:
            return
        parameters = {name: tensor.detach() for name, tensor in self.model.named_parameters()}
        if record.resume(stage, parameters) is not None:
            return
        record.back_up(stage, parameters)
        # Masks are not stored, so kept weights that are zero count as pruned here.
        pruned = {id(target.weight.parameter) for target in targets.values()}
        masks = {name: tensor.detach() != 0 for name, tensor in self.model.named_parameters() if id(tensor) in pruned}
        for refiner, dense in zip(self.refiners, self._dense, strict=True):
            refiner.refine(
                ModelTask(model=self.model, masks=masks, batches=self.batches, device=self.device, targets=dense)
            )
        record.commit(stage, parameters, {})
