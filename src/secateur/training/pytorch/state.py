"""Check the state of a torch pruner before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from secateur._array import Array, to_numpy
from secateur._wording import format_list, format_value
from secateur.errors import StateError
from secateur.training.resume import FORMAT_VERSION, describe_key

__all__ = ["check_arrays", "check_state", "make_damage_error", "to_host"]


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Step = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Progress(_Part):
    keep: dict[str, Any] | None
    condemned_keep: dict[str, Any] | None
    asked: Share
    initial: Share


class _RunState(_Part):
    config: dict[str, JsonValue]
    shapes: dict[str, list[int]]
    masks: dict[str, Any]
    progress: _Progress
    scores: dict[str, Any]
    keep_mask_layers: dict[str, str]
    latent: dict[str, Any] = {}
    gradients: dict[str, Any] = {}


class _PrunerState(_Part):
    step: Step
    optimizer_steps: list[Step]
    runs: list[_RunState]


def check_state(state: Any, optimizers: int, runs: int) -> None:
    """Raise `StateError` if this is not the state of a pruner with these numbers of optimizers and patterns."""
    version = state.get("format_version") if isinstance(state, Mapping) else None
    if type(version) is not int or version != FORMAT_VERSION:
        found = f"format {format_value(version)}" if isinstance(state, Mapping) else type(state).__name__
        raise StateError(
            f"Not the state of a pruner of format {FORMAT_VERSION}, found {found}. Pass the result of "
            "pruner.state_dict()."
        )
    try:
        checked = _PrunerState.model_validate(dict(state))
    except ValidationError as error:
        raise make_damage_error(format_list(map(_format_problem, error.errors(include_url=False)), limit=3)) from error
    for kind, expected, count in (
        ("optimizers", optimizers, len(checked.optimizer_steps)),
        ("patterns", runs, len(checked.runs)),
    ):
        if count != expected:
            raise StateError(f"The state is of a run with {count} {kind}, this one has {expected}.")
    if checked.step != min(checked.optimizer_steps):
        raise make_damage_error(
            f"step must be {min(checked.optimizer_steps)}, the minimum of optimizer_steps, found {checked.step}"
        )


def check_arrays(
    where: str, found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], dtype: str, *, all_or_none: bool
) -> None:
    """Raise `StateError` unless `found` contains arrays with the expected names, shapes and type."""
    names, others = format_list(map(repr, shapes)), format_list(map(format_value, found)) or "none"
    if all_or_none and found and found.keys() != shapes.keys():
        raise make_damage_error(f"{where} must include all of {names} or none, found {others}")
    if not found.keys() <= shapes.keys():
        raise make_damage_error(f"{where} must be among {names}, found {others}")
    for name, array in found.items():
        if _describe(array) != (expected := f"{dtype} of shape {shapes[name]}"):
            raise make_damage_error(f"{where} of {name!r} must be {expected}, found {_describe(array)}")


def to_host(where: str, found: Any) -> npt.NDArray[Any]:
    """Copy an array of a state to host memory, as float32 if NumPy does not support its type.

    Raises:
        StateError: The array cannot be read, such as a tensor on the meta device.
    """
    try:
        plain = found.detach() if hasattr(found, "detach") else found
        array = to_numpy(plain.float() if "bfloat16" in str(plain.dtype) else plain)
    except Exception as error:  # reading an object from a state may raise anything
        raise make_damage_error(f"{where} cannot be read: {format_value(str(error))}") from error
    if array.shape != tuple(found.shape):
        raise make_damage_error(f"{where} must be an array, found {type(found).__name__}")
    return array


def make_damage_error(problem: str) -> StateError:
    """Make the error for a damaged state."""
    return StateError(f"The state is damaged. {problem}. Load what pruner.state_dict() returned, unchanged.")


def _describe(array: Array) -> str:
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        return type(array).__name__
    return f"{str(array.dtype).rpartition('.')[2]} of shape {tuple(array.shape)}"


def _format_problem(problem: Any) -> str:
    where = ".".join(map(describe_key, problem["loc"]))
    found = "" if problem["type"] == "missing" else f", found {type(problem['input']).__name__}"
    return f"{where}: {problem['msg']}{found}"
