"""Slim a Keras model: prune it if requested, rebuild it without the units that nothing reads, and verify the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras

from secateur import graph as graph_package
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.graph import Graph
from secateur.graph.keras.walking import find_function
from secateur.oneshot import prune
from secateur.results import PruningReport
from secateur.slimming.keras.example_run import KerasExampleRun
from secateur.slimming.keras.surgery import KerasSurgery
from secateur.slimming.prune_request import PruneRequest
from secateur.slimming.report import SlimReport
from secateur.slimming.selection import exclude_groups

__all__ = ["slim"]


def slim(
    model: keras.Model,
    request: PruneRequest | None,
    *,
    example_inputs: Any,
    optimizer: Any = None,
    graph: Graph | None = None,
    exclude: Iterable[str] = (),
    allow_inexact: bool = False,
    mode: str = "exact",
) -> SlimReport:
    """See `secateur.slim`.

    Args:
        model: The model.
        request: How to prune the model first; ``None``: only remove units that are already zero.
        example_inputs: See `secateur.slim`, as for all other arguments.
        optimizer: Must be ``None``.
        graph: The dependencies.
        exclude: Names of groups.
        allow_inexact: Whether outputs may change.
        mode: Which zero units are removed.
    """
    if optimizer is not None:
        raise ConfigError("optimizer must be None for a Keras model. Compile the slimmed model with a new optimizer.")
    if not isinstance(model, keras.Model) or find_function(model) is None:
        raise UnsupportedModelError(
            f"The model must be Sequential or functional, so that it can be rebuilt with other sizes, found "
            f"{type(model).__name__}."
        )
    if graph is None:
        graph = graph_package.trace(model, example_inputs)
    graph = exclude_groups(graph, exclude)
    with _keep_weights(model):
        pruning = None if request is None else _prune(model, request, graph)
        surgery = KerasSurgery(model, graph, KerasExampleRun(model, example_inputs))
        report = surgery.perform(allow_inexact=allow_inexact, is_uniform=mode == "uniform")
    return replace(report, pruning=pruning)


def _prune(model: keras.Model, request: PruneRequest, graph: Graph) -> PruningReport:
    """Prune a model to the target of its configuration.

    Raises:
        UnsupportedModelError: Calibration data or a budget is given.
    """
    if request.calibration is not None:
        raise UnsupportedModelError(
            "Calibration data and budgets need a torch model. Set a target_sparsity, and leave calibration out."
        )
    config: Any = request.config
    return prune(
        model,
        config,
        solver=request.solver,
        refine=request.refine,
        allocation=request.allocation,
        execution=request.execution,
        loss=request.loss,
        example_inputs=graph,
    )


@contextmanager
def _keep_weights(model: keras.Model) -> Iterator[None]:
    """Restore the current weights of the model after this context."""
    weights = model.get_weights()
    try:
        yield
    finally:
        model.set_weights(weights)
