"""Create example inputs for a model from calibration data or random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.frameworks import detect_framework
from secateur.models.calibration import ARRAY_SUFFIXES, sample_calibration
from secateur.models.references import TrainedModel

__all__ = ["ExampleBatch", "make_example_batch"]

EXAMPLES = 2

LENGTH = 23
"""Tokens per example: a number that is no size in usual models, so that sizes in their code can be distinguished."""


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """One batch that a model accepts.

    Attributes:
        inputs: The batch, in a form that `secateur.plan` and `secateur.slim` accept as `example_inputs`.
        description: Its source, for messages.
    """

    inputs: Any
    description: str


def make_example_batch(trained: TrainedModel, file: Path | None = None) -> ExampleBatch | None:
    """Make one batch for a model.

    Args:
        trained: The model.
        file: Inputs as ``.npz`` or, for torch models, ``.safetensors``; or plain text for the model's tokenizer.
            ``None``: random token ids or pixel values, of the sizes in the configuration of a transformers model, or
            random numbers of the shapes that a Keras model accepts.

    Returns:
        The batch; ``None``: there is no file, and the inputs that the model accepts are unknown.

    Raises:
        CalibrationError: The file cannot be read or is unsuitable.
    """
    if detect_framework(trained.model) == "keras":
        return _make_keras_batch(trained.model, file)
    return _make_random_batch(trained.model) if file is None else _read_batch(trained, file)


def _make_keras_batch(model: Any, file: Path | None) -> ExampleBatch | None:
    from secateur.models.keras import make_random_arrays, read_arrays

    if file is not None:
        arrays, source = read_arrays(file, EXAMPLES), f"the first rows of {file}"
    elif (random := make_random_arrays(model, EXAMPLES)) is not None:
        arrays, source = random, f"random numbers of shape {' and '.join(_format_shape(array) for array in random)}"
    else:
        return None
    return ExampleBatch(arrays if len(arrays) > 1 else arrays[0], source)


def _make_random_batch(model: Any) -> ExampleBatch | None:
    from secateur._calls.pytorch.random_inputs import make_random_inputs

    inputs = make_random_inputs(model, EXAMPLES, LENGTH)
    if inputs is None:
        return None
    described = (f"{name} of shape {_format_shape(tensor)}" for name, tensor in inputs.items())
    return ExampleBatch(inputs, f"random {' and '.join(described)}")


def _read_batch(trained: TrainedModel, file: Path) -> ExampleBatch:
    from secateur._calls.pytorch.random_inputs import add_decoder_inputs
    from secateur.models.pytorch.batches import join_batches

    if file.suffix in ARRAY_SUFFIXES:
        return ExampleBatch(sample_calibration(trained, file, None, None).batches[0], f"the first rows of {file}")
    sample = sample_calibration(trained, file, EXAMPLES, LENGTH)
    return ExampleBatch(add_decoder_inputs(trained.model, join_batches(sample.batches)), sample.description)


def _format_shape(array: Any) -> str:
    return "×".join(map(str, array.shape))
