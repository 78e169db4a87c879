"""Remove units from a torch model with calibration data: choose and zero them, and repair the layers that read them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from secateur._wording import format_list
from secateur.allocations.global_ranking import Global
from secateur.errors import CalibrationError, ConfigError
from secateur.masking.pytorch import ParameterWeight
from secateur.masking.run import Run, build_report, refuse_violations
from secateur.oneshot.execution import Execution
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.blockwise.stage_loop import Outcome, StageLoop
from secateur.oneshot.pytorch.blockwise.stages import BlockStage
from secateur.oneshot.pytorch.calibration.batches import calibration_mode
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.recorded_run import RecordedRun
from secateur.oneshot.pytorch.resume import RunRecord
from secateur.oneshot.pytorch.units.mask_gradients import measure_gradients
from secateur.oneshot.pytorch.units.residual_sums import DenseSums
from secateur.oneshot.pytorch.units.unit_counts import check_counts, count_globally, count_uniformly, refuse_allocation
from secateur.oneshot.pytorch.units.unit_groups import UnitGroup, UnitMasks, build_groups, refuse_mixed_patterns
from secateur.oneshot.pytorch.units.unit_problems import (
    LossGradients,
    UnitTask,
    build_task,
    read_statistics,
    write_updates,
)
from secateur.oneshot.pytorch.units.unit_stages import (
    UnitStage,
    build_unit_stages,
    join_stages,
    record_statistics,
    sort_by_execution,
)
from secateur.oneshot.report import CalibratedReport
from secateur.patterns.coupled import GroupPattern
from secateur.planning.planner import Plan
from secateur.results import PruningReport
from secateur.solvers.unit_problem import ConsumerUpdate, RemovalPath

__all__ = ["ChooseCounts", "UnitRun", "refuse_weight_files", "removes_units"]

ChooseCounts = Callable[[Mapping[str, RemovalPath]], Mapping[str, int]]
"""Returns group → number of units to remove, given group → its units in the order of removal, with losses."""


IMPORTANCE_BATCHES = 8
"""Number of evenly spaced batches that suffice to estimate how much the loss depends on each output of a layer."""


class UnitRun(RecordedRun):
    """A pruning run in which a solver removes units with slices in several layers, such as channels or heads.

    Args:
        model: The model.
        plan: What to prune; all patterns are of units in several layers.
        recipe: How to prune.
        batches: The calibration data.
        execution: Where and how the run executes.
        choose_counts: Chooses how many units each group loses, after a pass over the dense model; a group can lose all
            of its units. ``None``: the targets of the patterns. A resumed run uses the counts of the original run.

    Attributes:
        identity: Plain values that identify `choose_counts`, so that a run does not resume one with other counts. Set
            it before the run starts.

    Raises:
        SecateurError: The data, the layers or the recipe are unsuitable.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        recipe: Recipe,
        batches: Iterable[Any],
        execution: Execution,
        *,
        choose_counts: ChooseCounts | None = None,
    ) -> None:
        refuse_weight_files(execution)
        refuse_mixed_patterns(plan)
        recipe.refuse_layer_members()
        self.originals = batches if isinstance(batches, (torch.Tensor, Mapping, str)) else list(batches)
        super().__init__(model, plan, recipe, self.originals, execution)
        self.groups = build_groups(self.model, plan)
        self.storage.check(plan, recipe)
        self.choose_counts = choose_counts
        self.identity: Any = None
        if choose_counts is None:
            refuse_allocation(recipe.allocation)

    def measure_paths(self) -> dict[str, RemovalPath]:
        """Return group → its units in the order in which they are removed from the dense model, with losses."""
        with closing(self.inputs), calibration_mode(self.model):
            self._sort_groups()
            return self._measure_paths(self._measure_gradients(with_importance=True))

    def _prune(self, record: RunRecord) -> Outcome:
        self._sort_groups()
        with_importance = self.choose_counts is not None or isinstance(self.recipe.allocation, Global)
        gradients: LossGradients | None = None
        counts = record.counts
        if counts is None:
            gradients = self._measure_gradients(with_importance=with_importance)
            counts = self._count_units(gradients)
        stages = self._build_stages()
        has_blocks = any(isinstance(stage.part, BlockStage) for stage in stages)
        repair = self._start_repair(record, len(stages), has_blocks=has_blocks)
        if gradients is None and not all(map(record.is_done, range(len(stages)))):
            gradients = self._measure_gradients(with_importance=with_importance)
        record.begin(counts)
        runner = UnitRunner(self.model, self.recipe, record, self.execution)
        runner.start(self.groups, counts, gradients or LossGradients())
        with closing(runner.sums):
            outcome = runner.run(stages)
        repair.refine(record, outcome, len(stages), [weight for group in self.groups for weight in group.parameters])
        runs = self._create_runs(outcome)
        refuse_violations({name: reason for run in runs for name, reason in run.violations().items()})
        return outcome

    def _warn(self, report: CalibratedReport) -> None:
        """Log warnings, except for layers that are empty because of the counts."""
        report.warn_of_magnitude()
        if self.choose_counts is None:
            report.warn_of_nearly_empty_layers()

    def _sort_groups(self) -> None:
        self.groups = sort_by_execution(self.model, self.groups, self.batches[0], self.storage.default_device)

    def _measure_gradients(self, *, with_importance: bool) -> LossGradients:
        """Measure the gradients that the solver needs, and those that make its losses comparable between groups."""
        needs = self.recipe.unit_solver.unit_needs
        if needs != "gradients" and not (with_importance and needs != "nothing"):
            return LossGradients()
        device = self.storage.default_device
        step = 1 if needs == "gradients" else max(1, len(self.given) // IMPORTANCE_BATCHES)
        data = self.given[::step], self.originals
        gradients = measure_gradients(self.model, self.groups, data, self.recipe.loss, device)
        if needs == "gradients" and (
            missing := [group.name for group in self.groups if group.name not in gradients.units]
        ):
            raise CalibrationError(
                f"{type(self.recipe.solver).__name__} needs gradients, and those of {format_list(map(repr, missing))} "
                f"cannot be measured. Choose another solver, such as 'magnitude', or exclude their layers."
            )
        return gradients

    def _count_units(self, gradients: LossGradients) -> dict[str, int]:
        """Return group → number of units to remove."""
        if self.choose_counts is not None:
            paths = self._measure_paths(gradients)
            with allow_interrupts():
                return check_counts(self.groups, self.choose_counts(paths))
        if isinstance(self.recipe.allocation, Global):
            return count_globally(self.groups, self._measure_paths(gradients))
        return count_uniformly(self.groups)

    def _measure_paths(self, gradients: LossGradients) -> dict[str, RemovalPath]:
        paths = {}
        for task in self._iterate_tasks(gradients):
            with allow_interrupts():
                paths[task.problem.name] = self.recipe.unit_solver.rank_units(task.problem)
        return paths

    def _iterate_tasks(self, gradients: LossGradients) -> Iterator[UnitTask]:
        """Run the dense model once, if the solver needs statistics, and yield the problems of its groups."""
        needs, masks = self.recipe.unit_solver.unit_needs, UnitMasks(self.groups)
        if needs in ("nothing", "gradients"):
            for group in self.groups:
                yield build_task(group, {}, masks, gradients, with_gram=False)
            return
        with_gram = needs == "gram"
        for stage in join_stages(self._build_stages()):
            with stage.load_weights():
                layers = stage.list_readers()
                inputs = read_statistics(
                    record_statistics(stage.part, layers, with_gram=with_gram, outputs=self.inputs)
                )
                for group in stage.groups:
                    yield build_task(group, inputs, masks, gradients, with_gram=with_gram)

    def _build_stages(self) -> list[UnitStage]:
        return build_unit_stages(self.model, self.groups, self.batches, self.inputs, self.storage)

    def _describe_run(self) -> dict[str, Any]:
        loss = self.recipe.loss
        name = None if loss is None else getattr(loss, "__qualname__", type(loss).__qualname__)
        return super()._describe_run() | {"counts": self.identity, "loss": name}

    def _create_runs(self, outcome: Outcome) -> list[Run[ParameterWeight]]:
        """Return the state of each pattern at the end, with its masks."""
        masks = UnitMasks(self.groups)
        masks.remove(outcome.removed)
        runs = []
        for pattern in {id(group.pattern): group.pattern for group in self.groups}.values():
            weights = {name: ParameterWeight(name, pattern) for name in pattern.views}
            for name, weight in weights.items():
                weight.mask = masks.mask_weight(pattern, name).to(weight.parameter.device)
            runs.append(Run(pattern, weights))
        return runs

    def _build_report(self, outcome: Outcome, seconds: float) -> CalibratedReport:
        weights = sum(weight.numel() for weight in self.model.parameters())
        report = build_report(self._create_runs(outcome), self.plan.dense, step=0, model_weights=weights)
        order = [row.name for row in self.plan.layers]
        values = {field.name: getattr(report, field.name) for field in fields(PruningReport)}
        values["layers"] = tuple(sorted(report.layers, key=lambda layer: order.index(layer.name)))
        return CalibratedReport(
            **values,
            solver=str(self.recipe),
            errors=outcome.errors,
            blind=outcome.blind,
            solver_seconds=outcome.solver_seconds,
            seconds=seconds,
        )


def removes_units(plan: Plan) -> bool:
    """Whether a plan has patterns of units in several layers."""
    return any(isinstance(pattern, GroupPattern) for pattern in plan.patterns if pattern.views)


def refuse_weight_files(execution: Execution) -> None:
    """Raise `ConfigError` if the weights are in files."""
    if execution.weights is not None:
        raise ConfigError(
            "Execution.weights loads a model block by block, and units in several layers are found in the whole model. "
            "Load the model: leave out weights (--low-memory)."
        )


class UnitRunner(StageLoop[UnitStage]):
    """Prunes the groups of units of a model stage by stage; see `StageLoop`."""

    def start(self, groups: Sequence[UnitGroup], counts: Mapping[str, int], gradients: LossGradients) -> None:
        """Set what to prune.

        Args:
            groups: All groups.
            counts: Group → number of units to remove.
            gradients: The gradients that were measured, if any.
        """
        self.masks = UnitMasks(groups)
        self.counts = counts
        self.gradients = gradients
        self.sums = DenseSums(self.execution.offload)

    @property
    def runs_dense(self) -> bool:
        """See `StageLoop.runs_dense`; repairs make up for errors before them."""
        return super().runs_dense or self.recipe.needs_unit_gram

    def advance_dense(self, stage: UnitStage, block: BlockStage) -> None:
        """See `StageLoop.advance_dense`."""
        with self.sums.record(stage.list_readers() if self.recipe.needs_unit_gram else {}):
            super().advance_dense(stage, block)

    def prune_stage(self, number: int, stage: UnitStage) -> None:
        """See `StageLoop.prune_stage`."""
        parameters = self.list_parameters(stage)
        self.record.back_up(number, parameters)
        errors: dict[str, float] = {}
        removed: dict[str, list[int]] = {}
        blind: dict[str, str] = {}
        seconds = 0.0
        for group in stage.groups:
            if self.counts[group.name]:
                task = self._measure(stage, group)
                blind |= task.blind
                start = time.perf_counter()
                keep_U, updates = self._solve(task)
                seconds += time.perf_counter() - start
                removed[group.name] = (~keep_U).nonzero()[:, 0].tolist()
                self.masks.remove({group.name: removed[group.name]})
                for name, error in write_updates(task, updates, self.masks).items():
                    errors[name] = errors.get(name, 0.0) + error
        if removed:
            self.refine_block(stage, self._mask_parameters(stage))
        outcome = {"removed": removed, "errors": errors, "blind": blind, "seconds": seconds}
        self.outcome.add(outcome)
        self.record.commit(number, parameters, outcome)

    def resume_stage(self, saved: Mapping[str, Any]) -> None:
        """See `StageLoop.resume_stage`."""
        self.masks.remove(saved["removed"])

    def list_parameters(self, stage: UnitStage) -> dict[str, torch.Tensor]:
        """See `StageLoop.list_parameters`."""
        parameters = {id(weight): weight for group in stage.groups for weight in group.parameters}
        if self.recipe.block_refiners and stage.block:
            parameters |= {id(weight): weight for weight in stage.block.module.parameters()}
        return self.name_parameters(list(parameters.values()))

    def _measure(self, stage: UnitStage, group: UnitGroup) -> UnitTask:
        """Measure the inputs of the layers that read a group, and build its problem."""
        with_gram = self.recipe.needs_unit_gram
        layers = {reader.name: reader.module for reader in group.readers if reader.blind is None}
        comparison = self.sums.start(layers, len(stage.part.batches))
        inputs = read_statistics(record_statistics(stage.part, layers, with_gram=with_gram, comparison=comparison))
        corrections = comparison.read([*inputs])
        return build_task(group, inputs, self.masks, self.gradients, with_gram=with_gram, corrections=corrections)

    def _solve(self, task: UnitTask) -> tuple[torch.Tensor, list[ConsumerUpdate]]:
        """Return the units to keep, and the new values of the consumers."""
        solver, count = self.recipe.unit_solver, self.counts[task.problem.name]
        problem = replace(task.problem, max_removed=count)
        updates = []
        with allow_interrupts():
            path = solver.rank_units(problem)
            keep_U = solver.select_units(problem, path, count).cpu()
            if keep_U.shape != (problem.units,) or int((~keep_U).sum()) != count:
                raise ConfigError(
                    f"{type(solver).__name__} must remove {count} of {problem.units} units of {problem.name!r}, found "
                    f"{int((~keep_U).sum())} of {len(keep_U)}."
                )
            for part in task.parts:
                keep = keep_U.to(part.consumer.weight.device)
                if not part.is_measured:
                    weight = part.consumer.weight * part.consumer.mask_features(keep)
                    updates.append(ConsumerUpdate(weight=weight))
                    continue
                update = solver.update_consumer(part.consumer, keep)
                for refiner in self.recipe.unit_refiners:
                    update = refiner.refine_consumer(part.consumer, keep, update)
                updates.append(update)
        return keep_U, updates

    def _mask_parameters(self, stage: UnitStage) -> dict[int, torch.Tensor]:
        """Return the identity of each parameter of the groups of a stage → its mask."""
        masks: dict[int, torch.Tensor] = {}
        for group in stage.groups:
            for layer in group.layers:
                parameter = ParameterWeight(layer, group.pattern).parameter
                masks[id(parameter)] = self.masks.mask_weight(group.pattern, layer).to(parameter.device)
        return masks
