"""Scan a torch model with calibration data: one pass, and all patterns and sparsities from its statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any

from torch import nn

from secateur.analysis.model_metric import ModelMetric
from secateur.analysis.pytorch.block_error import BlockError
from secateur.analysis.pytorch.stage_scan import Measure, StageScan
from secateur.analysis.scan_plan import LayerCase, ScanPlan, ScanRecorder
from secateur.distributed.pytorch.team import Team
from secateur.errors import UnsupportedModelError
from secateur.frameworks.pytorch import unwrap_model
from secateur.masking.run import refuse_nan
from secateur.oneshot.interrupts import defer_interrupts
from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.blockwise.stage_runner import collect_statistics
from secateur.oneshot.pytorch.blockwise.stages import Stage, build_stages
from secateur.oneshot.pytorch.calibration.batches import calibration_mode, hash_batches, read_batches
from secateur.oneshot.pytorch.calibration.input_features import refuse_unsupported
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.storage.weight_storage import choose_storage
from secateur.oneshot.pytorch.targets import Target, build_problem, build_targets
from secateur.results import SensitivityReport

__all__ = ["CalibratedScan"]


class CalibratedScan:
    """Measures what each layer loses, part by part of the dense model.

    Args:
        model: The model.
        plan: The layers.
        recipe: The solver.
        batches: The calibration data.

    Raises:
        SecateurError: The data or the layers are unsuitable.
    """

    def __init__(self, model: nn.Module, plan: ScanPlan, recipe: Recipe, batches: Iterable[Any]) -> None:
        recipe.refuse_unit_solver()
        for name, fits in plan.bound.items():
            refuse_unsupported(name, next(iter(fits.values())).modules[name])
        self._given, self._model = model, unwrap_model(model)
        self._plan, self._request, self._recipe = plan, plan.request, recipe
        self._recorder = ScanRecorder(plan)
        self._batches = read_batches(self._model, batches)
        self._storage = choose_storage(self._model, self._request.execution)
        self._outputs = Activations(self._request.execution.offload)
        self._targets = self._build_targets()

    def run(self) -> SensitivityReport:
        """Measure all layers."""
        with (
            defer_interrupts(),
            closing(Activations(self._request.execution.offload)) as inputs,
            closing(self._outputs),
            closing(self._storage),
            calibration_mode(self._model),
        ):
            refuse_nan({name: target.weight for name, target in self._first_targets.items()})
            metric = self._create_metric()
            stages = build_stages(self._model, self._first_targets, self._batches, inputs, self._storage)
            self._refuse_without_blocks(stages)
            for stage in stages:
                with stage.load_weights():
                    self._scan_stage(stage, metric)
                if stage.block is not None:
                    for batch in self._batches:
                        inputs[batch.number] = self._outputs[batch.number]
        dense_value = None if metric is None else metric.dense_value
        return self._recorder.build_report(dense_value=dense_value, data_sha256=hash_batches(self._batches))

    def _build_targets(self) -> dict[str, dict[str, Target]]:
        """Return layer → pattern → its target, without the number of units to prune."""
        targets: dict[str, dict[str, Target]] = {name: {} for name in self._plan.bound}
        for spec, plan in self._plan.plans.items():
            counts = {name: 0 for name, fits in self._plan.bound.items() if spec in fits}
            for name, target in build_targets(plan, counts, self._recipe.layer_solver).items():
                targets[name][spec] = target
        return targets

    @cached_property
    def _first_targets(self) -> dict[str, Target]:
        """Layer → its target with the first pattern that fits it."""
        return {name: next(iter(fits.values())) for name, fits in self._targets.items()}

    def _create_metric(self) -> ModelMetric | None:
        request = self._request
        if request.function is None:
            return None
        is_higher_better = request.higher_is_better
        return ModelMetric(request.function, self._given, request.metric_name, higher_is_better=is_higher_better)

    def _scan_stage(self, stage: Stage, metric: ModelMetric | None) -> None:
        for target in stage.targets:
            self._recorder.start_layer(target.name, target.weight)
        with_gram = self._request.metric == "layer" or self._recipe.needs_gram
        statistics, experts = collect_statistics(stage, Team(), with_gram=with_gram, outputs=self._outputs)
        if self._request.metric == "block" and stage.block is None:
            self._skip_stage(stage)
            return
        measure = self._choose_measure(stage, metric)
        scan = StageScan(self._plan, self._targets, self._recipe, self._recorder, measure)
        for names in statistics.group_layers():
            scan.scan_group(build_problem([self._first_targets[name] for name in names], statistics))
        for name in experts.layers:
            scan.scan_experts(name, experts)

    def _choose_measure(self, stage: Stage, metric: ModelMetric | None) -> Measure | None:
        if metric is not None:

            def measure_model(pruned: LayerCase) -> tuple[float, float]:
                value = metric.measure(str(pruned))
                return metric.compute_loss(value), value

            return measure_model
        if self._request.metric == "block" and stage.block is not None:
            error = BlockError(stage.block, self._outputs)
            return lambda _: (error.measure(), None)
        return None

    def _refuse_without_blocks(self, stages: Sequence[Stage]) -> None:
        """Raise `UnsupportedModelError` if outputs of blocks are compared, and there are no blocks."""
        if self._request.metric == "block" and not any(stage.block for stage in stages):
            raise UnsupportedModelError(
                f"metric='block' needs a model with a stack of blocks that run one after another, and "
                f"{type(self._model).__name__} has none. Measure errors with metric='layer'."
            )

    def _skip_stage(self, stage: Stage) -> None:
        """Record that the layers of a stage are in no block."""
        for target in stage.targets:
            self._recorder.skip(target.name, "it is outside of the blocks, whose outputs are compared")
            self._recorder.report_progress(target.name)
