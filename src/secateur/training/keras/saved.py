"""What a saved optimizer holds, read and checked before anything is taken over from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from secateur._wording import format_list, format_value
from secateur.errors import StateError

__all__ = ["Values", "damaged", "name_missing", "read_description", "read_values"]

Values = Mapping[int, npt.NDArray[Any]]
"""Identity of a variable → the value that it is to have."""

KINDS = {"bool": "b", "int": "iu", "uint": "iu", "float": "fV", "bfloat": "fV"}
"""Type of a variable without its bits → kinds of NumPy arrays that it takes over without loss."""


class _RunRecord(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    config: dict[str, JsonValue]
    shapes: dict[str, list[int]]


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    format_version: int
    runs: list[_RunRecord]


def read_description(stored: Any) -> dict[str, Any]:
    """Which run a state is of.

    Args:
        stored: Bytes of JSON, as an array.

    Raises:
        StateError: They are damaged.
    """
    try:
        found = json.loads(bytes(np.asarray(stored)))
        return _Description.model_validate(found).model_dump()
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        raise damaged("the description of the run cannot be read") from error


def read_values(variables: Sequence[keras.Variable], store: Any) -> list[npt.NDArray[Any]]:
    """The values that a store has for variables, of their shapes and types.

    Raises:
        StateError: One is missing, or of another shape or type.
    """
    return [_read_value(variable, str(index), store) for index, variable in enumerate(variables)]


def _read_value(variable: keras.Variable, key: str, store: Any) -> npt.NDArray[Any]:
    if key not in store.keys():  # noqa: SIM118 - not a mapping
        raise damaged(f"the variable {variable.name!r} is missing")
    try:
        value = np.asarray(store[key])
    except Exception as error:  # what lies in a store may raise anything when it is read
        raise damaged(f"the variable {variable.name!r} cannot be read: {format_value(str(error))}") from error
    shape = tuple(variable.shape)
    if value.shape != shape or value.dtype.kind not in KINDS[str(variable.dtype).rstrip("0123456789")]:
        raise damaged(
            f"the variable {variable.name!r} must be {variable.dtype} of shape {shape}, found {value.dtype} of shape "
            f"{value.shape}"
        )
    return value


def damaged(problem: str) -> StateError:
    """The error for a state that no optimizer wrote so."""
    return StateError(
        f"The saved state of the pruning run is damaged: {problem}. Load a file that was saved with the model."
    )


def name_missing(keys: Sequence[str], found: Any) -> None:
    """Raise `StateError` if `found` is no mapping with these keys."""
    if not isinstance(found, Mapping):
        raise damaged(f"the optimizer's configuration must be a mapping, found {type(found).__name__}")
    if missing := [key for key in keys if key not in found]:
        raise damaged(f"the optimizer's configuration lacks {format_list(map(repr, missing))}")
