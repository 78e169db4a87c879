"""The base class of runs with calibration data, which are recorded, so that they can be undone or resumed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from torch import nn

from secateur._wording import format_count
from secateur.distributed.pytorch.team import Team
from secateur.errors import CalibrationError, ConfigError
from secateur.frameworks.pytorch import get_parameter, unwrap_model
from secateur.oneshot.execution import Execution
from secateur.oneshot.interrupts import defer_interrupts
from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.blockwise.stage_loop import Outcome
from secateur.oneshot.pytorch.calibration.batches import Batch, calibration_mode, hash_batches, read_batches
from secateur.oneshot.pytorch.calibration.sequences import regroup_by_sequences
from secateur.oneshot.pytorch.checkpoint import CheckpointRecord
from secateur.oneshot.pytorch.model_repair import ModelRepair
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.resume import OTHER_WEIGHTS, RunRecord
from secateur.oneshot.pytorch.storage.memory_errors import explain_error
from secateur.oneshot.pytorch.storage.weight_storage import FileStorage, choose_storage
from secateur.oneshot.pytorch.team_record import TeamCheckpointRecord, TeamRecord
from secateur.oneshot.report import CalibratedReport
from secateur.planning.planner import Plan

__all__ = ["RecordedRun"]


class RecordedRun(ABC):
    """A pruning run with calibration data. If it fails, the model is as before.

    Args:
        model: The model.
        plan: What to prune.
        recipe: How to prune.
        batches: The calibration data.
        execution: Where and how the run executes.
        team: The ranks that prune together; by default one process.

    Attributes:
        batches: All calibration batches, which are the same on every rank.
        own_batches: Those that this rank runs.

    Raises:
        SecateurError: The data or the layers are unsuitable.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        recipe: Recipe,
        batches: Iterable[Any],
        execution: Execution,
        team: Team | None = None,
    ) -> None:
        self._start = time.perf_counter()
        self.team = team or Team()
        recipe.refuse_several_ranks(self.team.size)
        self.model = unwrap_model(model)
        self.plan = plan
        self.recipe = recipe
        self.execution = execution
        self.given = self.batches = read_batches(self.model, batches)
        self.storage = choose_storage(self.model, execution)
        if recipe.block_refiners or recipe.model_refiners:
            with calibration_mode(self.model):
                self.batches = regroup_by_sequences(self.model, self.batches, self.storage.default_device)
        self.own_batches = split_batches(self.batches, self.team)
        self.inputs = Activations(execution.offload)

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
                    self.team.gather(None)  # none fails from here on
            except BaseException as error:
                self._undo(record)
                explained = explain_error(error)
                explained.add_note(self._describe_state(record))
                if explained is error:
                    raise
                raise explained from error
            record.close(finished=not self.execution.keep_parts)
            report = self._build_report(outcome, time.perf_counter() - start)
            report = replace(report, data_sha256=record.description["data"], phases=tuple(outcome.phases))
            self._warn(report)
            return report

    def _warn(self, report: CalibratedReport) -> None:
        """Warn of results that the user may not expect."""
        if self.team.is_leader:
            report.warn_of_magnitude()
            report.warn_of_nearly_empty_layers()

    @abstractmethod
    def _prune(self, record: RunRecord) -> Outcome:
        """Prune the model, and record every finished stage."""

    @abstractmethod
    def _build_report(self, outcome: Outcome, seconds: float) -> CalibratedReport:
        """Verify the model, and report what was pruned and how long it took."""

    def _undo(self, record: RunRecord) -> None:
        """Restore the model's dense weights; if that fails, their backup stays."""
        try:
            record.undo(self.model)
        except BaseException:
            record.abandon()
            raise
        record.close(finished=False)

    def _start_repair(self, record: RunRecord, stages: int, *, has_blocks: bool) -> ModelRepair:
        """Return the repair of the whole model, which records the outputs of the dense model if it still has to run.

        Args:
            record: The record of the run.
            stages: Number of stages before the repair.
            has_blocks: Whether the model runs block by block, as refiners of blocks need.
        """
        if self.recipe.block_refiners and not has_blocks and not self.recipe.skips_blocks:
            raise ConfigError(
                f"refine='block' needs a model with a stack of blocks that run one after another, and "
                f"{type(self.model).__name__} has none. Leave it out."
            )
        repair = ModelRepair(
            model=self.model,
            recipe=self.recipe,
            batches=self.batches,
            device=self.storage.default_device,
            execution=self.execution,
            team=self.team,
            start=self._start,
        )
        if not record.is_done(stages):
            repair.record_dense()
        return repair

    def _open_record(self) -> RunRecord:
        folder, description = self.execution.folder, self._describe_run()
        if isinstance(self.storage, FileStorage):
            description["storage"] = "files"
        if self.team.size > 1:
            return self._open_team_record(description)
        if isinstance(self.storage, FileStorage):
            return CheckpointRecord(folder, description, self.storage)
        return RunRecord(folder, description)

    def _open_team_record(self, description: dict[str, Any]) -> RunRecord:
        """Open the record on rank 0, once all ranks agree on the run."""
        self.team.agree(
            {
                "configuration": description["config"],
                "solver, refiners and allocation": description["recipe"],
                "layers": description["layers"],
                "number of batches": len(self.batches),
                "calibration data": description["data"],
                "weights": self.storage.hash_other_weights(()),
            }
        )
        description["ranks"] = self.team.size  # another number of ranks adds in another order, which rounds differently
        if isinstance(self.storage, FileStorage):
            return TeamCheckpointRecord(self.team, self.execution.folder, description, self.storage)
        return TeamRecord(self.team, self.execution.folder, description)

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


def split_batches(batches: Sequence[Batch], team: Team) -> Sequence[Batch]:
    """Return the batches that this rank runs.

    Raises:
        CalibrationError: There are fewer batches than ranks.
    """
    if len(batches) < team.size:
        raise CalibrationError(
            f"calibration must contain at least as many batches as there are processes, {team.size}, found "
            f"{len(batches)}. Cut the data into smaller batches, or start fewer processes."
        )
    return [batch for batch in batches if team.owns(batch.number)]
