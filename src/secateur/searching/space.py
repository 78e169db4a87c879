"""The space of a search: the choices for each setting of a trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np

from secateur._registry import find_registered
from secateur._wording import format_list, format_value, suggest_name
from secateur.errors import ConfigError, UnknownNameError

__all__ = ["Choices", "PruningSpace", "Range", "is_full_pattern", "label_choice"]

GROUPINGS = ("model", "block", "layer")
"""Names of groupings of layers."""


@dataclass(frozen=True, slots=True)
class Range:
    """All numbers between two bounds, both included.

    Attributes:
        low: The smallest value, in [0, 1].
        high: The largest value, in [0, 1].
        step: Distance between two values; ``None``: any value in between. The sampler ``"grid"`` needs it.

    Raises:
        ConfigError: The bounds or the step are out of their range.

    Examples:
        >>> Range(0.5, 0.75, step=0.1).list_values()
        (0.5, 0.6, 0.7)
    """

    low: float
    high: float
    step: float | None = None

    def __post_init__(self) -> None:
        numbers = [self.low, self.high, *([] if self.step is None else [self.step])]
        if not all(_is_share(number) for number in numbers) or self.low >= self.high or self.step == 0:
            raise ConfigError(
                f"A range must have 0 ≤ low < high ≤ 1 and no step or 0 < step ≤ 1, found low={self.low!r}, "
                f"high={self.high!r}, step={self.step!r}."
            )

    def list_values(self) -> tuple[float, ...]:
        """Return all values of a range with a step."""
        assert self.step is not None
        count = math.floor((self.high - self.low) / self.step + 1e-9)
        return tuple(round(self.low + number * self.step, 12) for number in range(count + 1))


Choices: TypeAlias = tuple[Any, ...] | Range
"""The values that a setting may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningSpace:
    """The choices for each setting of a trial.

    A setting is a single value or a list of values. A share can also be a `Range`, or a mapping with its attributes.

    Attributes:
        pattern: Patterns to prune, such as ``["1x1", "4x1", "2:4"]``. Empty: weights are not pruned.
        sparsity: Shares of units to prune, in [0, 1], for patterns other than N:M, which prune as much as they can.
        width: Shares of the channels to keep when the model is slimmed before it is pruned, in (0, 1]; 1 removes none.
        solver: Solvers of `secateur.prune`, as names or objects.
        refine: Refiners of `secateur.prune`: each choice is a name, an object, a list of them, or ``None``.
        slim_solver: Solvers of `secateur.slim`; ``None`` is its default.
        groups: Which layers have their own sparsity: ``"model"`` (one for all), ``"block"`` or ``"layer"`` (one for
            each), a list of regular expressions for whole names of layers, one group each, or a mapping of such
            expressions to settings that differ in the group, of ``pattern`` and ``sparsity``. The first matching
            expression applies; layers without one share the settings of the space.

    Examples:
        >>> space = {"pattern": ["4x1", "2:4"], "sparsity": {"low": 0.3, "high": 0.9}}
        >>> PruningSpace.parse(space).sparsity
        Range(low=0.3, high=0.9, step=None)
    """

    pattern: tuple[str, ...] = ()
    sparsity: Choices = ()
    width: Choices = (1.0,)
    solver: tuple[Any, ...] = ("magnitude",)
    refine: tuple[tuple[Any, ...], ...] = ((),)
    slim_solver: tuple[Any, ...] = (None,)
    groups: str | Mapping[str, Mapping[str, Any]] = "model"

    @classmethod
    def parse(cls, space: Any) -> PruningSpace:
        """Read a space as `secateur.search` accepts it.

        Raises:
            UnknownNameError: A key or a name is unknown.
            ConfigError: The space is empty, or a value has another form.
        """
        if isinstance(space, PruningSpace):
            return space
        if not isinstance(space, Mapping):
            raise ConfigError(
                f"space must be a mapping such as {{'pattern': ['4x1', '2:4'], 'sparsity': [0.5, 0.7]}}, found "
                f"{format_value(space)}."
            )
        known = [field.name for field in fields(cls)]
        for key in space:
            if key not in known:
                raise UnknownNameError(
                    f"space: unknown key {format_value(key)}.{suggest_name(str(key), known)} Known: "
                    f"{format_list(known)}."
                )
        parsed = cls(**{key: _parse_setting(key, value) for key, value in space.items()})
        parsed._check()
        return parsed

    def _check(self) -> None:
        if not self.pattern and self.width == (1.0,):
            raise ConfigError(
                "The space is empty: it must have a pattern, such as {'pattern': ['4x1', '2:4'], 'sparsity': [0.5]}, "
                "or a width, such as {'width': [0.5, 0.75]}, found neither."
            )
        groups: Mapping[str, Mapping[str, Any]] = self.groups if isinstance(self.groups, Mapping) else {}
        if groups and not self.pattern:
            raise ConfigError("space: groups need a pattern for the layers that no group contains. Add 'pattern'.")
        for name, settings in {"": {}, **groups}.items():
            patterns = settings.get("pattern", self.pattern)
            if not settings.get("sparsity", self.sparsity) and not all(map(is_full_pattern, patterns)):
                where = f"groups[{name!r}]: " if name else ""
                raise ConfigError(
                    f"space: {where}sparsity must be set for patterns other than N:M, found "
                    f"{format_list(map(repr, patterns))} without it. Add 'sparsity', such as [0.5, 0.7] or "
                    f"Range(0.3, 0.9)."
                )


def is_full_pattern(pattern: str) -> bool:
    """Whether a pattern has one sparsity in a search: N:M, which prunes as much as it can."""
    return ":" in pattern


def label_choice(value: Any) -> Any:
    """Return the text or number that stands for a choice in tables and files.

    Examples:
        >>> label_choice(("pcg", "block")), label_choice(0.5), label_choice(None)
        ('pcg+block', 0.5, 'none')
    """
    if isinstance(value, tuple):
        return "+".join(str(label_choice(part)) for part in value) or "none"
    if isinstance(value, str | float):
        return value
    return "none" if value is None else repr(value)


def _parse_setting(key: str, value: Any) -> Any:
    if key == "groups":
        return _parse_groups(value)
    if key in ("sparsity", "width"):
        return _parse_shares(key, value)
    choices = _list_choices(key, value)
    if key == "pattern":
        for name in choices:
            _check_pattern(name)
    elif key == "refine":
        choices = tuple(_parse_refiners(choice) for choice in choices)
        for name in (part for choice in choices for part in choice if isinstance(part, str)):
            find_registered("refiner", name)
    else:
        for name in choices:
            if isinstance(name, str):
                find_registered("solver", name)
    return choices


def _parse_groups(value: Any) -> Any:
    if isinstance(value, str):
        if value not in GROUPINGS:
            raise UnknownNameError(
                f"space: groups must be one of {format_list(map(repr, GROUPINGS))}, a list of regular expressions or a "
                f"mapping, found {value!r}.{suggest_name(value, GROUPINGS)}"
            )
        return value
    if isinstance(value, Mapping):
        groups = {name: settings or {} for name, settings in value.items()}
    elif isinstance(value, Iterable):
        groups = {name: {} for name in value}
    else:
        groups = {}
    if not groups or not all(isinstance(settings, Mapping) for settings in groups.values()):
        raise ConfigError(
            f"space: groups must be one of {format_list(map(repr, GROUPINGS))}, a list of regular expressions, or a "
            f"mapping such as {{'fc.*': {{'sparsity': [0.5, 0.9]}}}}, found {format_value(value)}."
        )
    for name, settings in groups.items():
        if unknown := sorted(set(settings) - {"pattern", "sparsity"}):
            raise UnknownNameError(
                f"space: groups[{name!r}]: unknown key {unknown[0]!r}. Known: 'pattern', 'sparsity'."
            )
    return {
        name: {key: _parse_setting(key, choices) for key, choices in settings.items()}
        for name, settings in groups.items()
    }


def _parse_shares(key: str, value: Any) -> Choices:
    """Read shares: a range, or choices in ascending order."""
    if isinstance(value, Range):
        parsed: Choices = value
    elif isinstance(value, Mapping):
        if unknown := sorted(map(str, set(value) - {"low", "high", "step"})):
            raise UnknownNameError(f"space: {key}: unknown key {unknown[0]!r}. Known: 'low', 'high', 'step'.")
        if not {"low", "high"} <= value.keys():
            raise ConfigError(f"space: {key}: a range must have low and high, found {format_value(dict(value))}.")
        parsed = Range(**value)
    else:
        choices = _list_choices(key, value)
        for choice in choices:
            if not _is_share(choice):
                raise ConfigError(f"space: {key} must be numbers in [0, 1], found {format_value(choice)}.")
        parsed = tuple(sorted(set(map(float, choices))))
    lowest = parsed.low if isinstance(parsed, Range) else parsed[0]
    if key == "width" and lowest <= 0:
        raise ConfigError(f"space: width must be above 0, the share of channels to keep, found {lowest}.")
    return parsed


def _list_choices(key: str, value: Any) -> tuple[Any, ...]:
    """Return the choices of a setting, each once; a single value is the only choice."""
    choices = tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
    if not choices:
        raise ConfigError(f"space: {key} must have at least one choice, found none. Leave it out, or add one.")
    labels = [str(label_choice(tuple(choice) if isinstance(choice, list) else choice)) for choice in choices]
    return tuple(choice for index, choice in enumerate(choices) if labels.index(labels[index]) == index)


def _check_pattern(name: Any) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"space: a pattern must be a string such as '2:4', found {format_value(name)}.")
    if find_registered("pattern", name).coupling is not None:
        raise ConfigError(
            f"space: pattern {name!r} prunes units of several layers, which slimming removes. Set 'width', the share "
            f"of the channels to keep, such as {{'width': [0.5, 0.75, 1.0]}}."
        )


def _parse_refiners(choice: Any) -> tuple[Any, ...]:
    if choice in (None, "none"):
        return ()
    return tuple(choice) if isinstance(choice, list | tuple) else (choice,)


def _is_share(value: Any) -> bool:
    return (
        isinstance(value, int | float | np.integer | np.floating)
        and not isinstance(value, bool)
        and 0 <= float(value) <= 1
    )
