"""Slim a torch model: remove the units that nothing reads, with proof."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from secateur import graph as graph_package
from secateur._wording import suggest_name
from secateur.errors import ConfigError, UnknownNameError
from secateur.frameworks.pytorch import unwrap_model
from secateur.graph import Graph
from secateur.slimming.pytorch.checks import refuse_model, refuse_wrappers
from secateur.slimming.pytorch.example_run import ExampleRun
from secateur.slimming.pytorch.optimizer_state import list_optimizers
from secateur.slimming.pytorch.surgery import Surgery
from secateur.slimming.report import SlimReport

__all__ = ["slim"]

MODES = ("exact", "uniform")

EXCLUDED = "it is excluded by name"


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
    surgery = Surgery(inner, _exclude_groups(graph, exclude), example, optimizers)
    return surgery.perform(allow_inexact=allow_inexact, is_uniform=mode == "uniform")


def _exclude_groups(graph: Graph, names: Iterable[str]) -> Graph:
    """Give groups a reason to keep all units."""
    excluded = {names} if isinstance(names, str) else {*names}
    known = [group.name for group in graph.groups]
    for name in sorted(excluded - {*known}):
        raise UnknownNameError(f"exclude: there is no group {name!r}.{suggest_name(name, known)}")
    groups = (replace(group, reason=EXCLUDED) if group.name in excluded else group for group in graph.groups)
    return replace(graph, groups=tuple(groups))
