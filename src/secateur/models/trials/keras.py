"""Prepare Keras models for timing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from secateur.errors import CalibrationError, ConfigError, UnsupportedModelError
from secateur.models.keras import make_random_arrays, read_arrays
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
    inputs = make_random_arrays(model, batch) if file is None else read_arrays(file, batch)
    if inputs is None:
        raise CalibrationError("a model that takes inputs of any shape needs a file of inputs.")
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


def _replace_zeros(model: keras.Model) -> keras.Model:
    """Copy a model with small random numbers in place of its zeros."""
    dense = keras.models.clone_model(model)
    dense.set_weights([_add_noise(weight) for weight in model.get_weights()])
    return dense


def _add_noise(weight: Any) -> Any:
    noise = 0.01 * np.random.default_rng(0).standard_normal(weight.shape)
    return np.where(weight == 0, noise, weight).astype(weight.dtype) if weight.ndim > 1 else weight
