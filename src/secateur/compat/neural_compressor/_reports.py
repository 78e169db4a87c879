"""Merge the reports of the elements of one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.results import PruningReport
from secateur.results.pruning_report import LayerResult

__all__ = ["merge_reports"]


def merge_reports(reports: Sequence[PruningReport], masks: Sequence[Mapping[str, Any]]) -> PruningReport:
    """Merge the reports of several pruners of one model.

    Args:
        reports: The reports.
        masks: For each report, layer → its mask, from which layers with several pruners are counted.

    Returns:
        The only report, or a report on all layers. In a layer with several pruners, a weight is pruned if any of them
        pruned it, and each weight is a unit.
    """
    if len(reports) == 1:
        return reports[0]
    found: dict[str, list[LayerResult]] = {}
    for result in (result for report in reports for result in report.layers):
        found.setdefault(result.name, []).append(result)
    layers = tuple(
        results[0] if len(results) == 1 else _merge_results(results, [part[name] for part in masks if name in part])
        for name, results in found.items()
    )
    return PruningReport(
        layers=layers,
        dense={name: reason for report in reports for name, reason in report.dense.items() if name not in found},
        step=max((report.step for report in reports), default=0),
        last_step=max((report.last_step for report in reports), default=0),
        model_weights=max((report.model_weights for report in reports), default=0),
        configs=tuple(config for report in reports for config in report.configs),
    )


def _merge_results(results: Sequence[LayerResult], masks: Sequence[Any]) -> LayerResult:
    first, kept = results[0], masks[0]
    for mask in masks[1:]:
        kept = kept & mask
    pruned = int((~kept).sum())
    return LayerResult(
        name=first.name,
        pattern=" and ".join(result.pattern for result in results),
        shape=first.shape,
        weights=first.weights,
        pruned_weights=pruned,
        units=first.weights,
        pruned_units=pruned,
    )
