"""Slim a Keras model: build it again without the units that nothing reads, with proof."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from secateur import graph as graph_package
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.graph import Graph
from secateur.graph.keras.walking import find_function
from secateur.slimming.keras.example_run import KerasExampleRun
from secateur.slimming.keras.surgery import KerasSurgery
from secateur.slimming.report import SlimReport
from secateur.slimming.selection import exclude_groups

__all__ = ["slim"]


def slim(
    model: keras.Model,
    *,
    example_inputs: Any,
    optimizer: Any = None,
    graph: Graph | None = None,
    exclude: Iterable[str] = (),
    allow_inexact: bool = False,
    mode: str = "exact",
) -> SlimReport:
    """See `secateur.slim`."""
    if optimizer is not None:
        raise ConfigError("optimizer must be None for a Keras model. Compile the slimmed model with a new optimizer.")
    if not isinstance(model, keras.Model) or find_function(model) is None:
        raise UnsupportedModelError(
            f"The model must be Sequential or functional, so that it can be built again with other sizes, found "
            f"{type(model).__name__}."
        )
    example = KerasExampleRun(model, example_inputs)
    if graph is None:
        graph = graph_package.trace(model, example_inputs)
    surgery = KerasSurgery(model, exclude_groups(graph, exclude), example)
    return surgery.perform(allow_inexact=allow_inexact, is_uniform=mode == "uniform")
