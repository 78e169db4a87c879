"""Slim a torch model: remove the units that nothing reads, with proof."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from secateur import graph as graph_package
from secateur.errors import ConfigError
from secateur.frameworks.pytorch import unwrap_model
from secateur.graph import Graph
from secateur.slimming.pytorch.checks import refuse_model, refuse_wrappers
from secateur.slimming.pytorch.example_run import ExampleRun
from secateur.slimming.pytorch.optimizer_state import list_optimizers
from secateur.slimming.pytorch.surgery import Surgery
from secateur.slimming.report import SlimReport
from secateur.slimming.selection import exclude_groups

__all__ = ["slim"]

MODES = ("exact", "uniform")


def slim(
    model: nn.Module,
    *,
    example_inputs: Any,
    optimizer: Any = None,
    graph: Graph | None = None,
    exclude: Iterable[str] = (),
    allow_inexact: bool = False,
    mode: str = "exact",
) -> SlimReport:
    """See `secateur.slim`."""
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(map(repr, MODES))}, found {mode!r}.")
    refuse_wrappers(model)
    inner = unwrap_model(model)
    refuse_model(inner)
    optimizers = list_optimizers(inner, optimizer)
    example = ExampleRun(inner, example_inputs)
    if graph is None:
        graph = graph_package.trace(inner, example_inputs)
    surgery = Surgery(inner, exclude_groups(graph, exclude), example, optimizers)
    report = surgery.perform(allow_inexact=allow_inexact, is_uniform=mode == "uniform")
    return replace(report, model=model)
