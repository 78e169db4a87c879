"""Trace the model of a command, with example inputs that the command generates."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from secateur.cli.messages import say
from secateur.errors import CalibrationError
from secateur.frameworks import detect_framework
from secateur.graph import Graph, trace
from secateur.models import TrainedModel
from secateur.models.calibration import ARRAY_SUFFIXES
from secateur.models.example_inputs import make_example_batch

__all__ = ["trace_groups", "trace_model"]


def trace_model(trained: TrainedModel, file: Path | None = None) -> tuple[Any, Graph]:
    """Trace a model, and print which example inputs are used.

    Args:
        trained: The model.
        file: Calibration data; ``None``: random inputs.

    Returns:
        The example inputs, and the graph.

    Raises:
        SecateurError: No example inputs can be generated, or the model cannot be traced with them.
    """
    batch = make_example_batch(trained, file)
    if batch is None:
        raise CalibrationError(
            "Groups of weights are found by running the model, and no inputs can be generated for "
            f"{type(trained.model).__name__}. Pass a file of inputs, {' or '.join(ARRAY_SUFFIXES)}, with "
            "--calibration."
        )
    say(f"Example inputs: {batch.description}.")
    return batch.inputs, trace(trained.model, batch.inputs)


def trace_groups(trained: TrainedModel, kinds: Collection[str], file: Path | None = None) -> Graph | None:
    """Trace a model whose groups will be pruned.

    Args:
        trained: The model.
        kinds: The kinds of groups, such as ``"channels"``.
        file: See `trace_model`.

    Returns:
        The graph; ``None``: no example inputs can be generated, but the heads of a torch model can also be found by
        layer names.

    Raises:
        SecateurError: See `trace_model`.
    """
    if file is None:
        if detect_framework(trained.model) == "keras":  # its graph needs no inputs
            return trace(trained.model)
        if {*kinds} == {"heads"} and make_example_batch(trained) is None:
            return None
    return trace_model(trained, file)[1]
