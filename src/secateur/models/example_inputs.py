"""Make example inputs for a torch model: from calibration data, or random token ids or pixel values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.models.calibration import ARRAY_SUFFIXES, sample_calibration
from secateur.models.references import TrainedModel

__all__ = ["ExampleBatch", "make_example_batch"]

EXAMPLES = 2

LENGTH = 23
"""Tokens per example: not the size of anything in a usual model, so that sizes in its code are told apart."""


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
    """Make one batch for a torch model.

    Args:
        trained: The model.
        file: Inputs as ``.npz`` or ``.safetensors``, or plain text for the model's tokenizer. ``None``: random token
            ids or pixel values, of the sizes in the configuration of a transformers model.

    Returns:
        The batch; ``None``: there is no file, and the model takes neither text nor images.

    Raises:
        CalibrationError: The file cannot be read or is unsuitable.
    """
    from secateur._calls.pytorch.random_inputs import add_decoder_inputs, make_random_inputs
    from secateur.models.pytorch.batches import join_batches

    if file is None:
        inputs = make_random_inputs(trained.model, EXAMPLES, LENGTH)
        if inputs is None:
            return None
        described = (f"{name} of shape {'×'.join(map(str, tensor.shape))}" for name, tensor in inputs.items())
        return ExampleBatch(inputs, f"random {' and '.join(described)}")
    if file.suffix in ARRAY_SUFFIXES:
        sample = sample_calibration(trained, file, None, None)
        return ExampleBatch(sample.batches[0], f"the first rows of {file}")
    sample = sample_calibration(trained, file, EXAMPLES, LENGTH)
    return ExampleBatch(add_decoder_inputs(trained.model, join_batches(sample.batches)), sample.description)
