"""Scan a model by the configured criterion and a function of the model, in every framework."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from secateur.analysis.model_metric import ModelMetric
from secateur.analysis.scan_plan import LayerCase, ScanPlan, ScanRecorder
from secateur.masking.run import PrunedWeight, Run, refuse_nan
from secateur.oneshot.interrupts import defer_interrupts
from secateur.patterns import BasePattern, get_pattern
from secateur.results import SensitivityReport

__all__ = ["scan_by_criterion"]

Weight = TypeVar("Weight", bound=PrunedWeight)


def scan_by_criterion(
    model: Any,
    plan: ScanPlan,
    make_weight: Callable[[str, BasePattern], Weight],
    keep_values: Callable[[Weight], AbstractContextManager[object]],
) -> SensitivityReport:
    """Prune each layer alone by the criterion, measure the model, and restore the layer.

    Args:
        model: The model, which the metric reads.
        plan: The layers.
        make_weight: Returns the weight of a layer, given its name and pattern.
        keep_values: Returns a context at whose end a weight has the same values as before, bit for bit.

    Raises:
        ScoreError: A weight is ``nan``, or the metric is unsuitable.
    """
    request = plan.request
    assert request.function is not None
    recorder = ScanRecorder(plan)
    with defer_interrupts():
        weights = {name: make_weight(name, next(iter(fits.values()))) for name, fits in plan.bound.items()}
        refuse_nan(weights)
        metric = ModelMetric(request.function, model, request.metric_name, higher_is_better=request.higher_is_better)
        for name, weight in weights.items():
            recorder.start_layer(name, weight)
            for pruned in plan.iterate_cases(name):
                with keep_values(weight):
                    _prune_layer(pruned, make_weight)
                    value = metric.measure(str(pruned))
                recorder.add(pruned, metric.compute_loss(value), value)
            recorder.report_progress(name)
    return recorder.build_report(dense_value=metric.dense_value)


def _prune_layer(pruned: LayerCase, make_weight: Callable[[str, BasePattern], PrunedWeight]) -> None:
    """Prune one layer as if it were the only one."""
    config = pruned.pattern.config.model_copy(update={"target_sparsity": pruned.case.sparsity})
    modules = {pruned.layer: pruned.pattern.modules[pruned.layer]}
    single = get_pattern(config, modules, pruned.pattern.framework.name)
    run = Run(single, {pruned.layer: make_weight(pruned.layer, single)})
    run.start()
    run.weights[pruned.layer].apply_mask()
