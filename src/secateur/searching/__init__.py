"""Search for the best way to prune a model: the trade-off between its quality and its cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from secateur._packages import require_packages
from secateur._progress import ProgressDisplay
from secateur._wording import format_list, format_value, suggest_name
from secateur.config import ConfigLike
from secateur.errors import CalibrationError, ConfigError, UnknownNameError, UnsupportedModelError
from secateur.frameworks import detect_framework, import_leaf
from secateur.oneshot import Calibration, Execution
from secateur.searching.candidate import CandidateFactory, SearchCandidate
from secateur.searching.evaluation import DenseResult, EarlyStop, Evaluator, SearchRequest
from secateur.searching.model_space import make_factory
from secateur.searching.report import COSTS, SearchReport
from secateur.searching.sampling import SAMPLERS, check_sampler
from secateur.searching.space import PruningSpace, Range
from secateur.searching.study import SearchStudy, open_study
from secateur.searching.trial_loop import check_results, measure_dense, run_trials
from secateur.searching.trial_result import TrialResult, find_front
from secateur.searching.warm_start import WarmStart

__all__ = [
    "COSTS",
    "SAMPLERS",
    "DenseResult",
    "EarlyStop",
    "PruningSpace",
    "Range",
    "SearchCandidate",
    "SearchReport",
    "TrialResult",
    "search",
]

DIRECTIONS = ("maximize", "minimize")


def search(
    model: Any,
    objective: Callable[[Any], float],
    space: Mapping[str, Any] | PruningSpace,
    *,
    config: ConfigLike | None = None,
    calibration: Calibration | Iterable[Any] | None = None,
    example_inputs: Any = None,
    execution: Execution | None = None,
    cost: str | Callable[[Any], float] = "parameters",
    direction: Literal["maximize", "minimize"] = "maximize",
    stop: EarlyStop | None = None,
    trials: int = 40,
    sampler: Literal["tpe", "nsga2", "random", "grid"] = "tpe",
    seed: int = 0,
    storage: str | Path | None = None,
    progress: bool = False,
) -> SearchReport:
    """Search for patterns, sparsities and methods with the best quality at each cost.

    Each trial prunes a copy of the model with other settings, measures what it costs, and calls the objective. The
    model itself never changes. A trial that fails is recorded with its error, and the search goes on.

    With a storage, every finished trial is on disk. After an interruption, even by ``kill -9``, the same call resumes:
    at most the running trial is lost, and its settings are tried again. The result is that of an uninterrupted search
    if the objective and the cost are deterministic, which measured latency is not.

    Args:
        model: A torch module. A copy of it must fit in memory beside it.
        objective: Returns the quality of a pruned copy, such as its accuracy on validation data. It may change the
            copy, for example to fine-tune it. It is called twice for the dense model, to find out whether it is
            deterministic, with seeded random generators.
        space: The choices for each setting: a mapping with the attributes of `PruningSpace`.
        config: Settings that all trials share: a `PruningConfig` or a mapping without a pattern and a target, such as
            ``{"excluded_op_names": ["head"]}``.
        calibration: Batches in the form that the model accepts; see `secateur.prune`.
        example_inputs: Typical inputs of the model, for widths and for the costs ``"flops"`` and ``"latency"``.
            ``None``: the first batch of the calibration data.
        execution: Where and how trials are pruned; see `secateur.prune`.
        cost: What to minimize: ``"parameters"``, the number of weights that are not zero; ``"bytes"``, the size that
            `secateur.save` would write; ``"flops"`` of one call, without those of zero weights; ``"latency"`` of one
            call after `secateur.runtime.compile`, measured on this machine; or a function of the pruned model.
        direction: Whether a larger value of the objective is better or worse.
        stop: When to stop a trial before its objective is evaluated, to save time.
        trials: Number of trials, including those in the storage. A grid ends with its last candidate.
        sampler: ``"tpe"`` (tree-structured Parzen estimator), ``"nsga2"`` (a genetic algorithm), ``"random"``, or
            ``"grid"``, which tries all candidates in random order.
        seed: Seed of the sampler. The same seed gives the same trials.
        storage: File in which to store the search, a journal of Optuna. ``None``: an interrupted search starts over.
        progress: Whether to show the progress on standard error.

    Returns:
        All trials, and the Pareto front of cost and quality, with configurations for `secateur.prune`.

    Raises:
        MissingPackageError: Optuna is not installed.
        ConfigError: The space is empty or does not fit the model, the objective fails for the dense model, or all
            trials failed.
        StateError: The storage has a search of another model, space or objective.

    Examples:
        >>> import secateur, torch
        >>> layers = torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
        >>> model = torch.nn.Sequential(*layers)
        >>> inputs = torch.randn(256, 8)
        >>> expected = model(inputs)
        >>> def similarity(pruned):
        ...     return 1 - (pruned(inputs) - expected).square().mean().item()
        >>> space = {"pattern": ["1x1", "4x1", "2:4"], "sparsity": [0.25, 0.5, 0.75]}
        >>> report = secateur.search(
        ...     model, similarity, space, calibration=[inputs], sampler="grid"
        ... )
        >>> len(report.trials)
        7
        >>> best = report.best(max_cost=0.6 * report.dense.cost)
        >>> pruned = secateur.prune(
        ...     model, best.config, calibration=[inputs], **best.options
        ... )
    """
    require_packages("optuna", extra="search")
    check_sampler(sampler)
    _check_options(model, objective, cost, direction, trials)
    calibration = _read_batches(calibration)
    stop = stop or EarlyStop()
    if stop.max_error is not None and calibration is None:
        raise CalibrationError("stop: max_error needs calibration data, found none. Pass calibration=batches.")
    parsed = PruningSpace.parse(space)
    leaf = import_leaf("secateur.searching", model)
    if example_inputs is None and calibration is not None:
        example_inputs = leaf.take_example_inputs(model, calibration)
    factory = make_factory(model, parsed, config)
    request = SearchRequest(
        objective=objective,
        direction=direction,
        cost=cost,
        calibration=calibration,
        example_inputs=example_inputs,
        execution=execution,
        stop=stop,
    )
    path = None if storage is None else Path(storage)
    with open_study(path, direction) as opened, ProgressDisplay() if progress else nullcontext() as display:
        first = WarmStart(sampler, factory, seed, direction)
        study = SearchStudy(opened, factory, sampler, seed, first)
        study.check_identity(_describe_search(leaf.digest_model(model), request, factory), path)
        evaluator = Evaluator(model, request, factory.groups)
        dense = measure_dense(study, evaluator)
        results = run_trials(study, evaluator, factory, trials, display)
    report = SearchReport(
        trials=find_front(
            [result.describe_model(factory.make_candidate(result.values), factory.digests) for result in results],
            direction,
        ),
        objective=_get_name(objective),
        direction=direction,
        cost=_get_name(cost),
        dense=dense,
        sampler=sampler,
        seed=seed,
        storage=None if path is None else str(path),
    )
    check_results(report)
    return report


def _check_options(model: Any, objective: Any, cost: Any, direction: Any, trials: Any) -> None:
    if detect_framework(model) != "pytorch":
        raise UnsupportedModelError(
            "A search needs a torch module, and this is a Keras model. Call secateur.prune in a loop instead."
        )
    if not callable(objective):
        raise ConfigError(
            f"objective must be a function of a pruned model that returns its quality, found {format_value(objective)}."
        )
    if not callable(cost) and cost not in COSTS:
        raise UnknownNameError(
            f"cost must be a function or one of {format_list(map(repr, COSTS))}, found {cost!r}."
            f"{suggest_name(str(cost), COSTS)}"
        )
    if direction not in DIRECTIONS:
        raise UnknownNameError(f"direction must be 'maximize' or 'minimize', found {direction!r}.")
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
        raise ConfigError(f"trials must be a whole number of at least 1, found {trials!r}.")


def _read_batches(calibration: Any) -> Any:
    """Return calibration data that can be read once per trial."""
    if isinstance(calibration, Calibration):
        return replace(calibration, batches=_read_batches(calibration.batches))
    return list(calibration) if hasattr(calibration, "__next__") else calibration


def _describe_search(digest: str, request: SearchRequest, factory: CandidateFactory) -> dict[str, Any]:
    """Return what a stored search must have in common with this one, as plain values."""
    return {
        "model": digest,
        "space": factory.describe(),
        "objective": _get_name(request.objective),
        "direction": request.direction,
        "cost": _get_name(request.cost),
    }


def _get_name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
