"""The saved state of a pruning optimizer: which kernels are pruned, and the checked values of its variables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, JsonValue, NonNegativeInt, ValidationError, model_validator

from secateur._wording import format_list, format_value
from secateur.config import PruningConfig
from secateur.errors import ConfigError, LayerError, StateError
from secateur.frameworks.keras import FRAMEWORK, DetachedKernel, get_kernel
from secateur.graph import Group
from secateur.patterns import BasePattern, WeightView, get_pattern
from secateur.patterns.coupled import GroupPattern
from secateur.planning import Plan
from secateur.training.keras.saved_groups import SavedGroup

__all__ = ["SavedPlan", "Values", "make_damage_error", "read_header", "read_values", "require_keys"]


NUMBER = re.compile(r"_\d+(?=/|$)")
"""The suffix that Keras adds to make a name unique."""

NUMBER_IN_FRONT = re.compile(r"^([^/]*?)_\d+/")
"""The same suffix of the first name of a path."""


class _SavedKernel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    index: NonNegativeInt
    view: WeightView


class _SavedPattern(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    config: PruningConfig
    kernels: dict[str, _SavedKernel]
    groups: tuple[SavedGroup, ...] = ()


class _SavedVariable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, variable: keras.Variable) -> Self:
        return cls(path=variable.path, shape=tuple(variable.shape))

    def is_same(self, other: _SavedVariable) -> bool:
        """Whether shapes and paths agree. In a loaded model the first name may have another number, or be missing."""
        mine, theirs = (NUMBER_IN_FRONT.sub(r"\1/", one.path) for one in (self, other))
        longer, shorter = sorted((f"/{mine}", f"/{theirs}"), key=len, reverse=True)
        return self.shape == other.shape and longer.endswith(shorter)

    def is_like(self, other: _SavedVariable) -> bool:
        """Whether they are the same except for the numbers that Keras gives to unnamed layers."""
        mine, theirs = (_SavedVariable(path=NUMBER.sub("", one.path), shape=one.shape) for one in (self, other))
        return mine.is_same(theirs)


class SavedPlan(BaseModel):
    """Which kernels are pruned and how, as plain values.

    Attributes:
        variables: The model's trainable variables.
        patterns: The kernels of each pattern, by layer name, with their index among these.
        dense: Layer left dense → the reason.
        model_weights: Number of weights of the whole model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    variables: tuple[_SavedVariable, ...]
    patterns: tuple[_SavedPattern, ...]
    dense: dict[str, str]
    model_weights: NonNegativeInt

    @model_validator(mode="after")
    def _check_kernels(self) -> Self:
        """Check that each pruned kernel is a different variable of the same shape."""
        places: dict[int, str] = {}
        for name, own in ((name, own) for pattern in self.patterns for name, own in pattern.kernels.items()):
            if own.index >= len(self.variables):
                raise ValueError(f"kernel {name!r} is variable {own.index} of {len(self.variables)}")
            if (shape := self.variables[own.index].shape) != tuple(own.view.shape):
                raise ValueError(f"kernel {name!r} has shape {tuple(own.view.shape)}, its variable {shape}")
            if places.setdefault(own.index, name) != name:
                raise ValueError(f"kernels {name!r} and {places[own.index]!r} are one variable")
        return self

    @classmethod
    def of(cls, plan: Plan, model: keras.Model) -> Self:
        """Describe a plan for a model."""
        places = {id(variable): index for index, variable in enumerate(model.trainable_variables)}
        patterns = [
            {
                "config": pattern.config,
                "kernels": {
                    name: {"index": places[id(get_kernel(pattern.modules[name]))], "view": view}
                    for name, view in pattern.views.items()
                },
                "groups": [SavedGroup.of(group, _list_shapes(pattern)) for group in _list_groups(pattern)],
            }
            for pattern in plan.patterns
            if pattern.views
        ]
        return cls.model_validate(
            {
                "variables": [_SavedVariable.of(variable) for variable in model.trainable_variables],
                "patterns": patterns,
                "dense": plan.dense,
                "model_weights": model.count_params(),
            }
        )

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Create a plan from the values that `to_dict` returned.

        Raises:
            StateError: The values are damaged.
        """
        try:
            return cls.model_validate(values)
        except (ConfigError, ValidationError) as error:
            raise StateError(f"The saved description of a pruning run is damaged: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return lists, dicts, numbers and strings.

        Raises:
            ConfigError: The schedule is a function without a registered name.
        """
        configs = [pattern.config.to_dict() for pattern in self.patterns]
        values = self.model_dump(mode="json", exclude={"patterns": {"__all__": {"config"}}})
        patterns = [own | {"config": config} for own, config in zip(values["patterns"], configs, strict=True)]
        return values | {"patterns": patterns}

    def bind(self, variables: Sequence[keras.Variable]) -> tuple[BasePattern, ...]:
        """Bind the patterns to the kernels among a model's trainable variables.

        Raises:
            StateError: The variables belong to another model.
        """
        found, patterns = self._find_variables(variables), []
        for own in self.patterns:
            kernels = {name: DetachedKernel(found[one.index], one.view) for name, one in own.kernels.items()}
            try:
                shapes = {FRAMEWORK.get_parameter_name(*pair): pair[1].view.shape for pair in kernels.items()}
                groups = [group.restore(shapes) for group in own.groups]
            except (ConfigError, LayerError) as error:
                raise make_damage_error(str(error)) from error
            pattern = get_pattern(own.config, kernels, "keras", groups=groups)
            if groups and (invalid := next(iter(pattern.invalid_layers.items()), None)):
                raise make_damage_error(f"layer {invalid[0]!r}: {invalid[1]}")
            pattern.limit_layers()
            patterns.append(pattern)
        return tuple(patterns)

    def _find_variables(self, variables: Sequence[keras.Variable]) -> dict[int, keras.Variable]:
        """Find the pruned kernels, by their index in the saved variables.

        Variables are matched by order if the model has the same ones as before, because Keras may number layers
        differently each time. If layers were frozen or unfrozen since then, variables are matched by path.
        """
        now = [_SavedVariable.of(variable) for variable in variables]
        pruned = {own.index: name for pattern in self.patterns for name, own in pattern.kernels.items()}
        if len(now) == len(self.variables) and all(map(_SavedVariable.is_like, self.variables, now)):
            return {index: variables[index] for index in pruned}
        found = {}
        for index, name in pruned.items():
            mine = self.variables[index]
            matches = [variable for variable, one in zip(variables, now, strict=True) if mine.is_same(one)]
            if len(matches) != 1:
                raise StateError(
                    f"The run was saved with another model: its layer {name!r} has a kernel {mine.path!r} of shape "
                    f"{mine.shape}, and {len(matches)} of the {len(now)} trainable variables match. Load it into "
                    f"the model it was saved with, with the same layers trainable."
                )
            found[index] = matches[0]
        return found


def _list_groups(pattern: BasePattern) -> list[Group]:
    return list(pattern.group_by_name.values()) if isinstance(pattern, GroupPattern) else []


def _list_shapes(pattern: BasePattern) -> dict[str, tuple[int, ...]]:
    """Return the parameter of each pruned kernel, by its name in groups, with its shape."""
    name = pattern.framework.get_parameter_name
    return {name(layer, pattern.modules[layer]): view.shape for layer, view in pattern.views.items()}


Values = Mapping[int, npt.NDArray[Any]]
"""Identity of a variable → its new value."""

KINDS = {"bool": "b", "int": "iu", "uint": "iu", "float": "fV", "bfloat": "fV"}
"""Type of a variable without its bits → kinds of NumPy arrays that it can store without loss."""


class _SavedRun(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    config: dict[str, JsonValue]
    shapes: dict[str, list[int]]


class _SavedHeader(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    format_version: int
    runs: list[_SavedRun]


def read_header(stored: Any) -> dict[str, Any]:
    """Read the description of the run that a state belongs to.

    Args:
        stored: Bytes of JSON, as an array.

    Raises:
        StateError: The description is damaged.
    """
    try:
        found = json.loads(bytes(np.asarray(stored)))
        return _SavedHeader.model_validate(found).model_dump()
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        raise make_damage_error("the description of the run cannot be read") from error


def read_values(variables: Sequence[keras.Variable], store: Any) -> list[npt.NDArray[Any]]:
    """Read the values of variables from a store, checked for shape and type.

    Raises:
        StateError: A value is missing, or has the wrong shape or type.
    """
    return [_read_value(variable, str(index), store) for index, variable in enumerate(variables)]


def _read_value(variable: keras.Variable, key: str, store: Any) -> npt.NDArray[Any]:
    if key not in store.keys():  # noqa: SIM118 - not a mapping
        raise make_damage_error(f"the variable {variable.name!r} is missing")
    try:
        value = np.asarray(store[key])
    except Exception as error:  # reading an object from a store may raise anything
        raise make_damage_error(f"the variable {variable.name!r} cannot be read: {format_value(str(error))}") from error
    shape = tuple(variable.shape)
    if value.shape != shape or value.dtype.kind not in KINDS[str(variable.dtype).rstrip("0123456789")]:
        raise make_damage_error(
            f"the variable {variable.name!r} must be {variable.dtype} of shape {shape}, found {value.dtype} of shape "
            f"{value.shape}"
        )
    return value


def make_damage_error(problem: str) -> StateError:
    """Make the error for a damaged state."""
    return StateError(
        f"The saved state of the pruning run is damaged: {problem}. Load a file that was saved with the model."
    )


def require_keys(keys: Sequence[str], found: Any) -> None:
    """Raise `StateError` unless `found` is a mapping with these keys."""
    if not isinstance(found, Mapping):
        raise make_damage_error(f"the optimizer's configuration must be a mapping, found {type(found).__name__}")
    if missing := [key for key in keys if key not in found]:
        raise make_damage_error(f"the optimizer's configuration lacks {format_list(map(repr, missing))}")
