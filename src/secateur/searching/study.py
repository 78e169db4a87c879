"""A search as a study of Optuna, in memory or in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur._packages import require_packages
from secateur._wording import format_value
from secateur.errors import StateError
from secateur.searching.candidate import CandidateFactory
from secateur.searching.journal import open_journal
from secateur.searching.sampling import encode_values, make_sampler, suggest_value
from secateur.searching.trial_result import TrialResult
from secateur.searching.warm_start import WarmStart

__all__ = ["SearchStudy", "StartedTrial", "open_study"]

STUDY = "secateur"
"""Name of the study in a file."""

IDENTITY, DENSE, RECORD, STARTS = "identity", "dense", "record", "starts"
"""Names of the attributes of the study and of its trials."""

MAX_STARTS = 3
"""Number of times that a trial is started; if the process ends each time, it counts as failed."""


@dataclass(frozen=True, slots=True)
class StartedTrial:
    """A trial that has values and no result.

    Attributes:
        number: Its number, from 0.
        values: Name of a setting → its value.
        starts: Number of times that it was started.
        handle: The trial of Optuna.
    """

    number: int
    values: dict[str, Any]
    starts: int
    handle: Any


class SearchStudy:
    """Chooses the values of trials, and stores their results.

    Args:
        study: The study of Optuna.
        factory: The space.
        sampler: Name of the sampler.
        seed: The seed of the search.
        first: Chooses the values of the first trials.
    """

    def __init__(self, study: Any, factory: CandidateFactory, sampler: str, seed: int, first: WarmStart) -> None:
        self._study, self._factory, self._sampler, self._seed, self._first = study, factory, sampler, seed, first

    @property
    def max_trials(self) -> int | None:
        """Number of candidates of a grid; ``None``: there is no limit."""
        return len(self._first.points) if self._sampler == "grid" else None

    def check_identity(self, identity: Mapping[str, Any], path: Path | None) -> None:
        """Store what is searched, or compare it with what is stored.

        Raises:
            StateError: The stored study is of something else.
        """
        stored = self._study.user_attrs.get(IDENTITY)
        if stored is None and self._study.get_trials(deepcopy=False):
            raise StateError(f"storage {str(path)!r} has a study of another program. Choose another file.")
        plain = json.loads(json.dumps(identity))
        for key, value in {} if stored is None else plain.items():
            if stored.get(key) != value:
                raise StateError(
                    f"storage {str(path)!r} has the search of another {key}: {format_value(stored.get(key))}, and this "
                    f"call has {format_value(value)}. To resume it, pass the same; for a new search, choose another "
                    f"file."
                )
        if stored is None:
            self._study.set_user_attr(IDENTITY, plain)

    @property
    def dense(self) -> dict[str, Any] | None:
        """What was measured of the dense model; ``None``: nothing yet."""
        stored: dict[str, Any] | None = self._study.user_attrs.get(DENSE)
        return stored

    def store_dense(self, measured: Mapping[str, Any]) -> None:
        """Store what was measured of the dense model."""
        self._study.set_user_attr(DENSE, dict(measured))

    def list_results(self) -> list[TrialResult]:
        """Return the results of all finished trials, in their order."""
        finished = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]
        return [TrialResult.from_stored(trial.user_attrs[RECORD]) for trial in finished]

    def start_trial(self, results: Sequence[TrialResult]) -> StartedTrial:
        """Start the next trial, or again one during which the process ended.

        Args:
            results: The results of all finished trials.
        """
        import optuna
        from optuna.trial import TrialState

        unfinished = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        number = len(results)
        self._study.sampler = make_sampler(self._sampler, self._seed, number)
        if unfinished and unfinished[0].state == TrialState.RUNNING:
            trial = optuna.Trial(self._study, unfinished[0]._trial_id)
        else:
            if not unfinished and (first := self._first.choose_values(number, results)) is not None:
                self._study.enqueue_trial(encode_values(self._factory, first))
            trial = self._study.ask()
        values: dict[str, Any] = {}
        for index, axis in enumerate(self._factory.iterate_axes(values)):
            self._study.sampler = make_sampler(self._sampler, self._seed, number, index)
            values[axis.name] = suggest_value(trial, axis)
        starts = trial.user_attrs.get(STARTS, 0) + 1
        trial.set_user_attr(STARTS, starts)
        return StartedTrial(trial.number, values, starts, trial)

    def undo_start(self, trial: StartedTrial) -> None:
        """Do not count the start of a trial, which the user has interrupted."""
        trial.handle.set_user_attr(STARTS, trial.starts - 1)

    def finish_trial(self, trial: StartedTrial, result: TrialResult) -> None:
        """Store the result of a trial."""
        from optuna.trial import TrialState

        trial.handle.set_user_attr(RECORD, result.to_stored())
        if result.state == "complete":
            self._study.tell(trial.handle, [result.quality, result.cost])
        else:
            self._study.tell(trial.handle, state=TrialState.PRUNED if result.state == "pruned" else TrialState.FAIL)


@contextmanager
def open_study(path: Path | None, direction: Literal["maximize", "minimize"]) -> Iterator[Any]:
    """Open the study of Optuna in a file, or create one.

    Args:
        path: The file; ``None``: the study is in memory.
        direction: ``"maximize"`` or ``"minimize"``.

    Raises:
        MissingPackageError: Optuna is not installed.
        StateError: The file is not a journal, or another process uses it.
    """
    require_packages("optuna", extra="search")
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with nullcontext() if path is None else open_journal(path) as storage:
            if storage is not None and STUDY in optuna.get_all_study_names(storage):
                yield optuna.load_study(study_name=STUDY, storage=storage)
            else:
                yield optuna.create_study(study_name=STUDY, storage=storage, directions=[direction, "minimize"])
    finally:
        optuna.logging.set_verbosity(verbosity)
