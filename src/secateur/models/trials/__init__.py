"""Prepare a pruned model for timing: its inputs, and a dense copy to compare it with."""

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
    """A compiled model, ready to time.

    Attributes:
        call: Calls the compiled model.
        report: The report of the compilation.
    """

    call: Callable[[], object]
    report: RuntimeReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A pruned model and its dense copy, ready to time.

    Attributes:
        inputs: The shapes of the inputs and the GPU, for reports.
        dense: Calls the dense model, by default a copy in which small random numbers replace the zeros.
        pruned: Calls the pruned model.
        compile: Compiles a copy of the model for the runtime. It raises `MissingPackageError` if a package for the
            runtime is missing, and `UnsupportedModelError` if the runtime does not support the model.
    """

    inputs: str
    dense: Callable[[], object]
    pruned: Callable[[], object]
    compile: Callable[[], CompiledTrial]


def make_trial(
    model: Any, file: Path | None, batch: int, length: int, device: str | None = None, dense: Any = None
) -> Trial:
    """Prepare a model and its dense copy for timing.

    Args:
        model: The pruned model, of torch or Keras.
        file: ``.npz`` or ``.safetensors`` with inputs; ``None``: random inputs.
        batch: Number of examples.
        length: Tokens per example, for a language model.
        device: The device to run on, such as ``"cuda"``; ``None``: the device of the model.
        dense: The dense model, which gets the same inputs; ``None``: a copy of the model without its zeros.

    Raises:
        ConfigError: There is no such device, or the model is a Keras model, for which Keras chooses the device.
        CalibrationError: The inputs cannot be read, random inputs cannot be created for the model, or a model fails on
            them.
    """
    trial: Trial = import_leaf("secateur.models.trials", model).make_trial(model, file, batch, length, device, dense)
    return trial
