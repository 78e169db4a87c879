"""Prepare a pruned model for timing: its inputs, a call, and a dense twin to compare it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.frameworks import import_leaf
from secateur.runtime import RuntimeReport

__all__ = ["CompiledTrial", "Trial", "make_trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTrial:
    """A compiled model, ready to be called.

    Attributes:
        call: Calls it.
        report: What happened to its layers.
    """

    call: Callable[[], object]
    report: RuntimeReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A pruned model and its dense twin, ready to be called.

    Attributes:
        inputs: Shapes of the inputs, and the GPU, in words.
        dense: Calls the dense twin, which has small numbers in place of zeros.
        pruned: Calls the model.
        compile: Compiles a copy of the model for the runtime.

    Raises:
        MissingPackageError: By `compile`: what the runtime needs is not installed.
        UnsupportedModelError: By `compile`: the runtime does not support the model.
    """

    inputs: str
    dense: Callable[[], object]
    pruned: Callable[[], object]
    compile: Callable[[], CompiledTrial]


def make_trial(model: Any, file: Path | None, batch: int, length: int, device: str | None = None) -> Trial:
    """Prepare a model and its dense twin for timing.

    Args:
        model: The pruned model, of torch or Keras.
        file: ``.npz`` or ``.safetensors`` with inputs; ``None``: random inputs.
        batch: Number of examples.
        length: Tokens in each example, for a model of text.
        device: The device to run on, such as ``"cuda"``; ``None``: where the model is.

    Raises:
        ConfigError: There is no such device, or the model is a Keras model, for which Keras chooses the device.
        CalibrationError: The inputs cannot be read, or it is not known which inputs the model takes.
    """
    trial: Trial = import_leaf("secateur.models.trials", model).make_trial(model, file, batch, length, device)
    return trial
