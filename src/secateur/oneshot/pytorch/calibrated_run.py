"""Run pruning with calibration data on a torch model, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import nn

from secateur.allocations import AllocationTask, allocate
from secateur.distributed.pytorch.team import Team
from secateur.errors import ConfigError
from secateur.oneshot.execution import Execution, Progress
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.blockwise.stage_loop import Outcome
from secateur.oneshot.pytorch.blockwise.stage_runner import StageRunner, iterate_problems
from secateur.oneshot.pytorch.blockwise.stages import BlockStage, Stage, build_stages
from secateur.oneshot.pytorch.calibration.input_features import refuse_unsupported
from secateur.oneshot.pytorch.permutation.grouped_layers import refuse_patterns
from secateur.oneshot.pytorch.permutation.reordering import Reordering
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.recorded_run import RecordedRun
from secateur.oneshot.pytorch.resume import RunRecord
from secateur.oneshot.pytorch.storage.weight_storage import FileStorage
from secateur.oneshot.pytorch.targets import Target, build_targets
from secateur.oneshot.report import CalibratedReport
from secateur.patterns import BasePattern
from secateur.planning.planner import Plan
from secateur.results.permutation_report import PermutationReport, PermutedGroup
from secateur.solvers.problem import Problem

__all__ = ["CalibratedRun"]


class CalibratedRun(RecordedRun):
    """A pruning run in which a solver prunes each layer on its own; see `RecordedRun`."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        recipe: Recipe,
        batches: Iterable[Any],
        execution: Execution,
        team: Team | None = None,
    ) -> None:
        super().__init__(model, plan, recipe, batches, execution, team)
        recipe.refuse_unit_solver()
        self.reordering: Reordering | None = None
        if recipe.permute:
            refuse_patterns(plan.patterns)
            if isinstance(self.storage, FileStorage):
                raise ConfigError("permute needs all weights in memory. Load the model, or leave permute out.")
            self.reordering = Reordering(self.model, plan, self.own_batches, self.team)
        self.permutation: PermutationReport | None = None
        for pattern in plan.patterns:
            for name in pattern.views:
                refuse_unsupported(name, pattern.modules[name])
        self.storage.check(plan, recipe)

    def _prune(self, record: RunRecord) -> Outcome:
        if self.reordering is not None:
            self._reorder(self.reordering, record)
        counts = self.team.share(self._allocate()) if record.counts is None else record.counts
        targets = build_targets(self.plan, counts, self.recipe.layer_solver)
        stages = self._build_stages(targets)
        has_blocks = any(isinstance(stage, BlockStage) for stage in stages)
        repair = self._start_repair(record, len(stages), has_blocks=has_blocks)
        record.begin(counts)
        outcome = StageRunner(self.model, self.recipe, record, self.execution, self.team).run(stages)
        repair.refine(record, outcome, len(stages), (target.weight.parameter for target in targets.values()))
        return outcome

    def _reorder(self, reordering: Reordering, record: RunRecord) -> None:
        """Search the orders of channels, or use those of an interrupted run."""
        if record.orders is None:
            self.permutation, orders = reordering.search(self._show_search())
            record.orders = {"orders": orders, "groups": [asdict(group) for group in self.permutation.groups]}
            return
        reordering.apply(record.orders["orders"])
        groups = (PermutedGroup(**{**values, "layers": tuple(values["layers"])}) for values in record.orders["groups"])
        self.permutation = PermutationReport(groups=tuple(groups))

    def _show_search(self) -> Callable[[str, int, int], object]:
        start = time.perf_counter()

        def show(name: str, done: int, total: int) -> None:
            if self.execution.progress is not None and self.team.is_leader:
                seconds = time.perf_counter() - start
                left = (total - done) * seconds / done
                with allow_interrupts():
                    self.execution.progress(
                        Progress(
                            stage=name, done=done, total=total, seconds=seconds, seconds_left=left, action="Reordered"
                        )
                    )

        return show

    def _undo(self, record: RunRecord) -> None:
        super()._undo(record)
        if self.reordering is not None:
            self.reordering.restore()

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
        targets = build_targets(self.plan, counts, self.recipe.layer_solver)
        stages = self._build_stages(targets)
        return iterate_problems(stages, self.inputs, self.team, with_gram=needs == "gram")

    def _load(self, pattern: BasePattern, layer: str) -> AbstractContextManager[object]:
        return self.storage.load(pattern.modules[layer])

    def _build_stages(self, targets: Mapping[str, Target]) -> list[Stage]:
        stages = build_stages(self.model, targets, self.own_batches, self.inputs, self.storage)
        self.team.agree({"parts": [(stage.name, [target.name for target in stage.targets]) for stage in stages]})
        return stages

    def _build_report(self, outcome: Outcome, seconds: float) -> CalibratedReport:
        order = [row.name for row in self.plan.layers if row.name in outcome.results]
        return CalibratedReport(
            layers=tuple(outcome.results[name] for name in order),
            dense=dict(self.plan.dense),
            step=0,
            last_step=0,
            model_weights=sum(weight.numel() for weight in self.model.parameters()),
            configs=tuple(pattern.config for pattern in self.plan.patterns if pattern.views),
            sensitivity=None if self.recipe.sensitivity is None else self.recipe.sensitivity.losses,
            solver=str(self.recipe),
            errors=outcome.errors,
            magnitude_reasons=outcome.blind,
            solver_seconds=outcome.solver_seconds,
            seconds=seconds,
            permutation=self.permutation,
        )
