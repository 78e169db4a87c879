"""Run the trials of a search, one after another."""

from __future__ import annotations

import logging
from dataclasses import replace

from secateur._progress import ProgressDisplay
from secateur._wording import format_count, format_reasons
from secateur.errors import ConfigError, StateError
from secateur.searching.candidate import CandidateFactory
from secateur.searching.evaluation import DenseResult, Evaluator
from secateur.searching.report import SearchReport
from secateur.searching.study import MAX_STARTS, SearchStudy
from secateur.searching.trial_result import TrialResult

__all__ = ["check_results", "measure_dense", "run_trials"]

logger = logging.getLogger(__name__)


def measure_dense(study: SearchStudy, evaluator: Evaluator) -> DenseResult:
    """Measure the dense model, and compare its quality with the stored one.

    Raises:
        StateError: The objective is deterministic, and has another value than when the search was stored.
    """
    measured, stored = evaluator.measure_dense(), study.dense
    if stored is None:
        study.store_dense(measured.to_dict())
        return measured
    first = DenseResult(**stored)
    if not first.noise and not measured.noise and first.quality != measured.quality:
        raise StateError(
            f"storage has the search of another objective: the dense model had {first.quality!r}, and now has "
            f"{measured.quality!r}. To resume it, pass the same objective and data; for a new "
            f"search, choose another file."
        )
    return first


def run_trials(
    study: SearchStudy, evaluator: Evaluator, factory: CandidateFactory, trials: int, display: ProgressDisplay | None
) -> list[TrialResult]:
    """Run trials until there are as many as requested, and return all results.

    Args:
        study: The study.
        evaluator: Evaluates candidates.
        factory: Makes candidates.
        trials: Number of trials, including those that are stored.
        display: Shows the progress.
    """
    results = study.list_results()
    count = trials if study.max_trials is None else min(trials, study.max_trials)
    if display is not None:
        display.begin("Searching", total=max(0, count - len(results)))
    while len(results) < count:
        trial = study.start_trial(results)
        twin = next((result for result in results if result.values == trial.values), None)
        if trial.starts > MAX_STARTS:
            reason = f"the process ended during this trial {format_count(MAX_STARTS, 'time')}"
            result = TrialResult(number=trial.number, values=trial.values, state="failed", reason=reason)
        elif twin is not None:
            result = replace(twin, number=trial.number, seconds=0.0, repeats=twin.number)
        else:
            candidate = factory.make_candidate(trial.values)
            try:
                result = evaluator.evaluate(trial.number, trial.values, candidate, results)
            except BaseException:
                study.undo_start(trial)
                raise
        study.finish_trial(trial, result)
        results.append(result)
        if display is not None:
            display.advance(f"Trial {len(results)} of {count}")
    return results


def check_results(report: SearchReport) -> None:
    """Raise an error if no trial is complete, and log the warnings of the report.

    Raises:
        ConfigError: All trials failed, or none was worth finishing.
    """
    if not any(trial.state == "complete" for trial in report.trials):
        reasons = format_reasons((f"trial {trial.number}", trial.reason) for trial in report.trials)
        raise ConfigError(
            f"The search has no result: none of {format_count(len(report.trials), 'trial')} is complete. Change the "
            f"space, the objective or stop so that candidates succeed.\n{reasons}"
        )
    for line in report.list_warnings():
        logger.warning("%s", line)
