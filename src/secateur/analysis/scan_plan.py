"""The layers that a scan measures, and what it has measured so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from secateur._wording import format_list
from secateur.analysis.scan_request import ScanRequest
from secateur.errors import CalibrationError, ConfigError, UnsupportedModelError
from secateur.masking.weight import PrunedWeight
from secateur.oneshot.execution import Progress
from secateur.oneshot.interrupts import allow_interrupts
from secateur.patterns import BasePattern
from secateur.planning import Plan
from secateur.results import LayerSensitivity, PruningCase, SensitivityPoint, SensitivityReport

__all__ = ["LayerCase", "ScanPlan", "ScanRecorder"]

logger = logging.getLogger(__name__)


class LayerCase(NamedTuple):
    """One layer, pruned with one pattern at one sparsity.

    Attributes:
        layer: Name of the layer.
        case: The pattern and the sparsity.
        pattern: The pattern, bound to the layer and others.
        pruned_units: Number of units to prune.
    """

    layer: str
    case: PruningCase
    pattern: BasePattern
    pruned_units: int

    def __str__(self) -> str:
        return f"layer {self.layer!r} at {self.case}"


@dataclass(frozen=True)
class ScanPlan:
    """The layers that a scan measures.

    Attributes:
        request: The arguments of the scan.
        plans: Pattern → how it prunes the model.

    Raises:
        UnsupportedModelError: A pattern couples layers.
        ConfigError: A pattern reaches none of the sparsities.
    """

    request: ScanRequest
    plans: Mapping[str, Plan]

    def __post_init__(self) -> None:
        for spec, plan in self.plans.items():
            if not any(case.pattern == spec for case in self.cases):
                raise ConfigError(
                    f"sparsities must include one that pattern {spec!r} reaches, at most {_find_maximum(plan):.6g}, "
                    f"found {format_list(map(str, self.request.sparsities))}."
                )
            for pattern in plan.patterns:
                if pattern.units.keys() != pattern.views.keys():
                    raise UnsupportedModelError(
                        f"patterns must prune single layers, and {pattern.pattern!r} couples layers. Leave it out."
                    )

    @cached_property
    def bound(self) -> dict[str, dict[str, BasePattern]]:
        """Layer → pattern specification → the pattern, in the order of the model."""
        found: dict[str, dict[str, BasePattern]] = {
            row.name: {} for plan in self.plans.values() for row in plan.layers if row.is_pruned
        }
        for spec, plan in self.plans.items():
            for pattern in plan.patterns:
                for name in pattern.views:
                    found[name][spec] = pattern
        order = [row.name for plan in self.plans.values() for row in plan.layers]
        return {name: found[name] for name in dict.fromkeys(order) if name in found}

    @cached_property
    def cases(self) -> list[PruningCase]:
        """The patterns with the sparsities that they reach."""
        return [
            PruningCase(spec, share)
            for spec, plan in self.plans.items()
            for share in self.request.sparsities
            if share <= _find_maximum(plan)
        ]

    def find_out_of_reach(self) -> dict[str, tuple[float, ...]]:
        """Return pattern → the sparsities that it does not reach."""
        missed = {
            spec: tuple(share for share in self.request.sparsities if share > _find_maximum(plan))
            for spec, plan in self.plans.items()
        }
        return {spec: shares for spec, shares in missed.items() if shares}

    def iterate_cases(self, layer: str) -> Iterator[LayerCase]:
        """Yield a layer with each pattern that fits it, at each sparsity."""
        for case in self.cases:
            if (pattern := self.bound[layer].get(case.pattern)) is not None:
                yield LayerCase(layer, case, pattern, pattern.budget.count_locally(layer, case.sparsity))

    def find_misfits(self) -> dict[str, dict[str, str]]:
        """Return pattern → layer that only other patterns fit → the reason."""
        misfits = {
            spec: {name: reason for name, reason in plan.dense.items() if name in self.bound}
            for spec, plan in self.plans.items()
        }
        return {spec: reasons for spec, reasons in misfits.items() if reasons}

    def find_dense(self) -> dict[str, str]:
        """Return layer that no pattern prunes → the reason."""
        plan = next(iter(self.plans.values()))
        return {name: reason for name, reason in plan.dense.items() if name not in self.bound}


class ScanRecorder:
    """Records what was measured, and reports the progress.

    Args:
        plan: The layers to measure.
    """

    def __init__(self, plan: ScanPlan) -> None:
        self.plan = plan
        self._start = time.perf_counter()
        self._points: dict[str, list[SensitivityPoint]] = {}
        self._weights: dict[str, tuple[tuple[int, ...], str]] = {}
        self._factors: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._done: set[str] = set()

    def start_layer(self, layer: str, weight: PrunedWeight) -> None:
        """Record a layer, before anything in it is pruned."""
        self._points[layer] = []
        self._weights[layer] = tuple(weight.shape), weight.compute_digest()

    def set_factor(self, layer: str, factor: float) -> None:
        """Record by how much to multiply the losses of a layer to compare them with those of others."""
        self._factors[layer] = factor

    def add(self, pruned: LayerCase, loss: float, value: float | None = None) -> None:
        """Record a loss."""
        units = pruned.pattern.budget.units[pruned.layer]
        pattern, sparsity = pruned.case
        self._points[pruned.layer].append(
            SensitivityPoint(
                pattern=pattern,
                sparsity=sparsity,
                units=units,
                pruned_units=pruned.pruned_units,
                loss=loss,
                value=value,
            )
        )

    def skip(self, layer: str, reason: str) -> None:
        """Record why a layer cannot be measured."""
        self._points.pop(layer, None)
        self._reasons[layer] = reason

    def report_progress(self, layer: str) -> None:
        """Report that a layer is done."""
        self._done.add(layer)
        if (callback := self.plan.request.execution.progress) is None:
            return
        done, total = len(self._done), len(self.plan.bound)
        seconds = time.perf_counter() - self._start
        left = (total - done) * seconds / done
        with allow_interrupts():
            callback(Progress(stage=layer, done=done, total=total, seconds=seconds, seconds_left=left))

    def build_report(self, *, dense_value: float | None = None, data_sha256: str = "") -> SensitivityReport:
        """Build the report.

        Raises:
            CalibrationError: No layer could be measured.
        """
        request = self.plan.request
        if not self._points:
            name, reason = next(iter(self._reasons.items()))
            raise CalibrationError(f"no layer could be measured; for example, layer {name!r}: {reason}.")
        report = SensitivityReport(
            metric=request.metric_name,
            solver=request.solver if isinstance(request.solver, str) else repr(request.solver),
            layers=tuple(self._build_layer(name) for name in self.plan.bound if name in self._points),
            dense=self.plan.find_dense() | self._reasons,
            misfits=self.plan.find_misfits(),
            out_of_reach=self.plan.find_out_of_reach(),
            higher_is_better=request.higher_is_better,
            dense_value=dense_value,
            seconds=time.perf_counter() - self._start,
            data_sha256=data_sha256,
        )
        _warn_of_direction(report)
        return report

    def _build_layer(self, name: str) -> LayerSensitivity:
        shape, digest = self._weights[name]
        factor = self._factors.get(name, 1.0)
        return LayerSensitivity(
            name=name, shape=shape, sha256=digest, points=tuple(self._points[name]), loss_factor=factor
        )


def _find_maximum(plan: Plan) -> float:
    """Return the largest sparsity that a pattern reaches."""
    return min(float(pattern.budget.unit_share) for pattern in plan.patterns)


def _warn_of_direction(report: SensitivityReport) -> None:
    """Warn if pruning improves the model on average, which is unlikely."""
    if sum(point.loss for layer in report.layers for point in layer.points) < 0:
        logger.warning(
            "%s improves if layers are pruned, on average. If %s values are better, pass higher_is_better=%s.",
            report.metric,
            "lower" if report.higher_is_better else "higher",
            not report.higher_is_better,
        )
