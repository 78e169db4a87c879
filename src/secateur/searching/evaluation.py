"""Evaluate candidates: slim and prune a copy of the model, and measure its cost and its quality."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

from secateur._wording import format_count, format_value, make_printable_line
from secateur.errors import ConfigError, ScoreError
from secateur.frameworks import import_leaf
from secateur.oneshot import prune
from secateur.oneshot.report import CalibratedReport
from secateur.results import PruningReport, Record
from secateur.searching.candidate import SearchCandidate
from secateur.searching.layer_groups import LayerGroup
from secateur.searching.trial_result import TrialResult
from secateur.slimming import slim

__all__ = ["DenseResult", "EarlyStop", "Evaluator", "SearchRequest", "describe_error"]

MAX_BETTER = 2
"""Number of trials that cost no more and may be better in a cheap first evaluation, which is only an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStop:
    """When to stop a trial before its objective is evaluated.

    Attributes:
        max_error: Maximum share of output energy that layers may lose on the calibration data, as a geometric mean.
        screen: A cheap first evaluation, with the same direction as the objective, such as the accuracy on a few
            batches. A trial ends if it is worse than three others that cost no more.

    Examples:
        >>> EarlyStop(max_error=0.2)
        EarlyStop(max_error=0.2, screen=None)
    """

    max_error: float | None = None
    screen: Callable[[Any], float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What candidates are evaluated with; see `secateur.search`.

    Attributes:
        objective: Returns the quality of a model.
        direction: ``"maximize"`` or ``"minimize"``.
        cost: Name of the cost, or a function that returns it.
        calibration: The calibration data.
        example_inputs: Typical inputs of the model.
        execution: Where and how candidates are pruned.
        stop: When to stop a trial early.
    """

    objective: Callable[[Any], float]
    direction: str
    cost: str | Callable[[Any], float]
    calibration: Any
    example_inputs: Any
    execution: Any
    stop: EarlyStop


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseResult(Record):
    """What was measured of the dense model.

    Attributes:
        quality: Value of the objective.
        repeated_quality: Value of the objective in a second call, which differs if it is not deterministic.
        cost: Its cost.
    """

    quality: float
    repeated_quality: float
    cost: float

    @property
    def noise(self) -> float:
        """Difference between the two calls of the objective."""
        return abs(self.quality - self.repeated_quality)


class _TrialStopError(Exception):
    """Raised when a trial is not worth finishing."""


class Evaluator:
    """Evaluates candidates on copies of a model.

    Args:
        model: The dense model, which never changes.
        request: What to measure, and with which data.
        groups: The groups of layers whose errors are recorded.
    """

    def __init__(self, model: Any, request: SearchRequest, groups: Sequence[LayerGroup]) -> None:
        self._model, self._request, self._groups = model, request, groups
        self._leaf = import_leaf("secateur.searching", model)
        self._costs = self._leaf.CostMeter(request.cost, model, request.example_inputs)

    def measure_dense(self) -> DenseResult:
        """Measure the dense model; the objective is called twice, to find out whether it is deterministic.

        Raises:
            ConfigError: The objective or the cost fails, or is not a finite number.
        """
        copies = (self._leaf.copy_model(self._model) for _ in range(2))
        try:
            first, second = (self._call(self._request.objective, "objective", copy) for copy in copies)
        except ScoreError as error:
            raise ConfigError(f"{error} This is the dense model, before any trial.") from error
        except Exception as error:
            raise ConfigError(
                f"objective must accept the model and return its quality, found {describe_error(error)} for the dense "
                f"model, before any trial."
            ) from error
        return DenseResult(quality=first, repeated_quality=second, cost=self._measure_dense_cost())

    def _measure_dense_cost(self) -> float:
        try:
            return float(self._costs.dense)
        except ScoreError as error:
            raise ConfigError(f"{error} This is the dense model, before any trial.") from error

    def evaluate(
        self, number: int, values: Mapping[str, Any], candidate: SearchCandidate, earlier: Sequence[TrialResult]
    ) -> TrialResult:
        """Evaluate a candidate; an error is part of the result.

        Args:
            number: The number of the trial.
            values: The values of its settings.
            candidate: The configurations with these values.
            earlier: The results of other trials.
        """
        start, known = perf_counter(), dict[str, Any]()
        state: Literal["complete", "pruned", "failed"] = "complete"
        reason = ""
        try:
            self._measure(candidate, earlier, known)
        except _TrialStopError as stop:
            state, reason = "pruned", str(stop)
        except Exception as error:  # noqa: BLE001 - recorded, because the other trials are still worth their time
            state, reason = "failed", describe_error(error)
        known["seconds"] = perf_counter() - start
        result = TrialResult(number=number, values=dict(values), state="failed", candidate=candidate)
        return replace(result, **known, state=state, reason=reason)

    def _measure(self, candidate: SearchCandidate, earlier: Sequence[TrialResult], known: dict[str, Any]) -> None:
        request, stop = self._request, self._request.stop
        model = self._leaf.copy_model(self._model)
        with self._leaf.fix_seed(model), _silence_steps():
            report = self._prune(model, candidate)
        known["sparsity"] = self._leaf.compute_sparsity(model, self._model)
        if report is not None:
            known["layers"] = tuple(layer.record() for layer in report.layers)
        if isinstance(report, CalibratedReport):
            known["error"] = _compute_mean(list(report.errors.values()))
            known["group_errors"] = {
                f"sparsity[{group.name}]": sum(report.errors.get(layer, 0.0) for layer in group.layers)
                for group in self._groups
            }
        if stop.max_error is not None and (error := known.get("error")) is not None and error > stop.max_error:
            raise _TrialStopError(f"layers lost {error:.4g} of their output energy, above {stop.max_error:.4g}")
        known["cost"] = float(self._costs.measure(model))
        if stop.screen is not None:
            known["screen"] = self._call(stop.screen, "screen", model)
            self._compare_screen(known["screen"], known["cost"], earlier)
        known["quality"] = self._call(request.objective, "objective", model)

    def _prune(self, model: Any, candidate: SearchCandidate) -> PruningReport | None:
        request = self._request
        report = None
        if candidate.slim_config is not None:
            slim(
                model,
                candidate.slim_config,
                calibration=request.calibration,
                example_inputs=request.example_inputs,
                **candidate.slim_options,
            )
        if candidate.config is not None:
            report = prune(
                model,
                candidate.config,
                calibration=request.calibration,
                execution=request.execution,
                **candidate.options,
            )
        return report

    def _compare_screen(self, value: float, cost: float, earlier: Sequence[TrialResult]) -> None:
        sign = 1 if self._request.direction == "maximize" else -1
        better = [
            other.number
            for other in earlier
            if other.screen is not None
            and other.cost is not None
            and other.repeats is None
            and other.cost <= cost
            and sign * other.screen > sign * value
        ]
        if len(better) > MAX_BETTER:
            cheaper = format_count(len(better), "trial")
            raise _TrialStopError(
                f"its first evaluation, {value:.5g}, is worse than that of {cheaper} that cost no more"
            )

    def _call(self, function: Callable[[Any], float], name: str, model: Any) -> float:
        with self._leaf.fix_seed(model):
            value = function(model)
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ScoreError(f"{name} must return a number, found {format_value(value)}.") from error
        if not math.isfinite(number):
            raise ScoreError(f"{name} must return a finite number, found {number}.")
        return number


@contextmanager
def _silence_steps() -> Iterator[None]:
    """Silence the warnings of pruning and slimming, which would repeat in most trials."""
    loggers = [logging.getLogger(f"secateur.{name}") for name in ("results", "oneshot", "slimming")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def describe_error(error: BaseException) -> str:
    """Return the type and the text of an error on one line."""
    return make_printable_line(f"{type(error).__name__}: {error}")


def _compute_mean(errors: Sequence[float]) -> float | None:
    """Return the geometric mean of the errors that are not zero; ``None``: there are none."""
    positive = [error for error in errors if error > 0]
    return math.exp(sum(map(math.log, positive)) / len(positive)) if positive else None
