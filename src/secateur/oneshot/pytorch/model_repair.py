"""Repair the whole model after its parts were pruned, as the last stage of a run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.distributed.pytorch.team import Team
from secateur.oneshot.execution import Execution, Progress
from secateur.oneshot.pytorch.blockwise.stage_loop import Outcome, report_progress
from secateur.oneshot.pytorch.calibration.batches import Batch
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.resume import RunRecord
from secateur.oneshot.report import Phase
from secateur.refiners.base import ModelTask

__all__ = ["ModelRepair"]

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ModelRepair:
    """The refiners of the whole model, as the last stage of a run.

    Attributes:
        model: The model.
        recipe: How to prune, with refiners of the whole model or without.
        batches: The calibration data.
        device: The device of the model.
        execution: The callback for progress.
        team: The ranks that refine the model together.
        start: When the run started, by ``time.perf_counter``.
    """

    model: nn.Module
    recipe: Recipe
    batches: Sequence[Batch]
    device: torch.device
    execution: Execution
    team: Team
    start: float
    _dense: list[Any] = field(default_factory=list, init=False)
    _dense_seconds: float = field(default=0.0, init=False)

    def record_dense(self) -> None:
        """Record the outputs of the dense model, before anything is pruned."""
        start = time.perf_counter()
        self._dense = [refiner.targets(self.model, self.batches, self.device) for refiner in self.recipe.model_refiners]
        self._dense_seconds = time.perf_counter() - start

    def refine(self, record: RunRecord, outcome: Outcome, stage: int, pruned: Iterable[nn.Parameter]) -> None:
        """Refine the model, or resume from the record.

        Args:
            record: The record of the run on disk.
            outcome: The results of the run so far; what the refiners did is added.
            stage: The number of this stage.
            pruned: The pruned weights.
        """
        if not self.recipe.model_refiners:
            return
        parameters = {name: tensor.detach() for name, tensor in self.model.named_parameters()}
        if (saved := record.resume(stage, parameters)) is not None:
            outcome.phases += [Phase(**values, seconds=0.0) for values in saved.get("refined", [])]
        else:
            record.back_up(stage, parameters)
            phases = self._run_refiners(self._find_masks(pruned), stage)
            self.team.gather(None)
            self.team.copy(list(parameters.values()))
            refined = [{"name": phase.name, "remark": phase.remark} for phase in phases]
            record.commit(stage, parameters, {"refined": refined})
            outcome.phases += [Phase(name="the outputs of the dense model", seconds=self._dense_seconds), *phases]
        self._report(stage + 1, stage + 1, "the model", 0.0)

    def _find_masks(self, pruned: Iterable[nn.Parameter]) -> dict[str, torch.Tensor]:
        """Return the masks. They are not stored, so kept weights that are zero count as pruned."""
        ids = {id(weight) for weight in pruned}
        return {name: tensor.detach() != 0 for name, tensor in self.model.named_parameters() if id(tensor) in ids}

    def _run_refiners(self, masks: Mapping[str, torch.Tensor], stage: int) -> list[Phase]:
        phases = []
        for refiner, dense in zip(self.recipe.model_refiners, self._dense, strict=True):
            start = time.perf_counter()
            task = ModelTask(
                model=self.model,
                masks=masks,
                batches=self.batches,
                device=self.device,
                targets=dense,
                team=self.team,
                seconds=self._measure_seconds_left(),
                clock=time.perf_counter,
                report_step=partial(self._report_step, stage),
            )
            remark = refiner.refine(task) or ""
            phases.append(Phase(name=type(refiner).__name__, seconds=time.perf_counter() - start, remark=remark))
        return phases

    def _measure_seconds_left(self) -> float | None:
        """Return what is left of the time limit of the run, by the clock of rank 0."""
        if self.recipe.minutes is None:
            return None
        seconds = self.team.share(60 * self.recipe.minutes - (time.perf_counter() - self.start))
        if seconds <= 0 and self.team.is_leader:
            logger.warning(
                "Pruning took all of the %g minutes, so the model was not tuned. Give it more, such as %.0f.",
                self.recipe.minutes,
                math.ceil(4 * (self.recipe.minutes - seconds / 60)),
            )
        return seconds

    def _report_step(self, stage: int, step: int, steps: int | None, seconds_left: float | None) -> None:
        total = "" if steps is None else f" of {steps}"
        self._report(stage, stage + 1, f"the model, step {step}{total}", seconds_left or 0.0)

    def _report(self, done: int, total: int, name: str, seconds_left: float) -> None:
        seconds = time.perf_counter() - self.start
        step = Progress(
            stage=name, done=done, total=total, seconds=seconds, seconds_left=seconds_left, action="Refined"
        )
        report_progress(self.execution, self.team, step)
