"""Prepare Keras models for timing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from secateur._wording import format_value
from secateur.errors import CalibrationError, ConfigError, UnsupportedModelError
from secateur.models.archives import read_npz
from secateur.models.trials import CompiledTrial, Trial

__all__ = ["make_trial"]


def make_trial(
    model: keras.Model,
    file: Path | None,
    batch: int,
    length: int,  # noqa: ARG001 - for language models only
    device: str | None = None,
    dense: keras.Model | None = None,
) -> Trial:
    """See `secateur.models.trials.make_trial`."""
    if device is not None:
        raise ConfigError(f"device is for torch models only, and {model.name!r} is a Keras model. Leave it out.")
    inputs = _make_random_inputs(model, batch) if file is None else _read_inputs(file, batch)
    dense = _replace_zeros(model) if dense is None else dense
    shapes = " and ".join("×".join(map(str, array.shape)) for array in inputs)
    _call(model, inputs)
    return Trial(
        inputs=shapes,
        dense=partial(_call, dense, inputs),
        pruned=partial(_call, model, inputs),
        compile=partial(_compile, model),
    )


def _compile(model: keras.Model) -> CompiledTrial:
    raise UnsupportedModelError(f"the runtime supports torch modules only, and {model.name!r} is a Keras model.")


def _call(model: keras.Model, inputs: Sequence[Any]) -> None:
    keras.ops.convert_to_numpy(keras.tree.flatten(model(inputs if len(inputs) > 1 else inputs[0], training=False))[0])


def _make_random_inputs(model: keras.Model, batch: int) -> list[Any]:
    generator = np.random.default_rng(0)
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if not shapes or any(None in shape for shape in shapes):
        raise CalibrationError("a model that takes inputs of any shape needs a file of inputs.")
    return [generator.standard_normal((batch, *shape), dtype=np.float32) for shape in shapes]


def _read_inputs(file: Path, batch: int) -> list[Any]:
    return [_select_rows(name, array, batch, file) for name, array in read_npz(file).items()]


def _select_rows(name: str, array: Any, batch: int, file: Path) -> Any:
    if array.ndim == 0 or array.dtype.kind not in "biufc":
        raise CalibrationError(
            f"{str(file)!r} must have arrays of numbers with one row per example, found {format_value(name)}: "
            f"{array.dtype}, {list(array.shape)}."
        )
    return array[:batch]


def _replace_zeros(model: keras.Model) -> keras.Model:
    """Copy a model with small random numbers in place of its zeros."""
    dense = keras.models.clone_model(model)
    dense.set_weights([_add_noise(weight) for weight in model.get_weights()])
    return dense


def _add_noise(weight: Any) -> Any:
    noise = 0.01 * np.random.default_rng(0).standard_normal(weight.shape)
    return np.where(weight == 0, noise, weight).astype(weight.dtype) if weight.ndim > 1 else weight
