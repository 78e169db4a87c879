"""Models at work: their inputs, a call, and the same model without zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.frameworks import import_leaf
from secateur.runtime import RuntimeReport

__all__ = ["CompiledTrial", "Trial", "trial"]


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
        inputs: What they read, and on which GPU, for a person.
        dense: Calls the same model with small numbers in place of its zeros.
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


def trial(model: Any, file: Path | None, batch: int, length: int, device: str | None = None) -> Trial:
    """Make a model and its twin ready.

    Args:
        model: The pruned model, of torch or Keras.
        file: ``.npz`` or ``.safetensors`` with inputs; ``None``: random ones.
        batch: Examples.
        length: Tokens in each, for a model of text.
        device: Where it is to work, such as ``"cuda"``; ``None``: where it is.

    Raises:
        ConfigError: There is no such device here, or the model is one of Keras, which has its own way to choose one.
        CalibrationError: The inputs cannot be read, or nothing is known of those that the model takes.
    """
    made: Trial = import_leaf("secateur.models.running", model).trial(model, file, batch, length, device)
    return made
