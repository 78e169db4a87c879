"""Samplers: how the values of the next trial are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from secateur._wording import format_list, suggest_name
from secateur.errors import UnknownNameError
from secateur.searching.candidate import CandidateFactory, SearchAxis
from secateur.searching.space import Range

__all__ = ["SAMPLERS", "check_sampler", "encode_values", "make_sampler", "suggest_value"]

SAMPLERS = ("tpe", "nsga2", "random", "grid")

RANDOM_TRIALS = 10
"""Trials before TPE uses their results, and the size of a generation of NSGA-II."""


def check_sampler(name: Any) -> None:
    """Raise `UnknownNameError` if there is no such sampler."""
    if name not in SAMPLERS:
        raise UnknownNameError(
            f"sampler must be one of {format_list(map(repr, SAMPLERS))}, found {name!r}."
            f"{suggest_name(str(name), SAMPLERS)}"
        )


def make_sampler(name: str, seed: int, *position: int) -> Any:
    """Make a sampler of Optuna for one value.

    Every value has a sampler with its own seed, because Optuna does not store the state of random generators: a search
    that resumes would start them anew, and repeat its first trials.

    Args:
        name: One of `SAMPLERS`.
        seed: The seed of the search.
        position: The number of the trial, and of the setting in it.
    """
    from optuna import samplers

    own = int(np.random.SeedSequence([seed, *position]).generate_state(1)[0])
    if name == "tpe":
        return samplers.TPESampler(seed=own, n_startup_trials=RANDOM_TRIALS, constant_liar=False)
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=own, population_size=RANDOM_TRIALS)
    return samplers.RandomSampler(seed=own)


def suggest_value(trial: Any, axis: SearchAxis) -> Any:
    """Let a trial of Optuna choose the value of a setting."""
    if isinstance(axis.choices, Range) and axis.choices.step is None:
        return trial.suggest_float(axis.name, axis.choices.low, axis.choices.high)
    values = axis.list_values()
    if axis.is_number:  # their order is known to the sampler, unlike that of categories
        return values[trial.suggest_int(axis.name, 0, len(values) - 1)]
    return trial.suggest_categorical(axis.name, values)


def encode_values(factory: CandidateFactory, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as Optuna stores them; see `suggest_value`."""
    encoded = {}
    for axis in factory.iterate_axes(values):
        value = values[axis.name]
        is_index = axis.is_number and not (isinstance(axis.choices, Range) and axis.choices.step is None)
        encoded[axis.name] = axis.list_values().index(value) if is_index else value
    return encoded
