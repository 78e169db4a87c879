"""Remove the units of a torch model that nothing reads, and verify the outputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from secateur import graph as graph_package
from secateur._calls.pytorch.example_run import ExampleRun
from secateur._wording import format_list
from secateur.frameworks.pytorch import unwrap_model
from secateur.graph import Graph
from secateur.slimming.pytorch.checks import refuse_model, refuse_wrappers
from secateur.slimming.pytorch.code_sizes import UnresolvedSizeError
from secateur.slimming.pytorch.optimizer_state import list_optimizers
from secateur.slimming.pytorch.surgery import Surgery
from secateur.slimming.report import SlimReport
from secateur.slimming.selection import exclude_groups

__all__ = ["remove_units"]

logger = logging.getLogger(__name__)


def remove_units(
    model: nn.Module,
    *,
    example_inputs: Any,
    optimizer: Any = None,
    graph: Graph | None = None,
    exclude: Iterable[str] = (),
    allow_inexact: bool = False,
    mode: str = "exact",
) -> SlimReport:
    """See `secateur.slim`, without the arguments for pruning first."""
    refuse_wrappers(model)
    inner = unwrap_model(model)
    refuse_model(inner)
    optimizers = list_optimizers(inner, optimizer)
    example = ExampleRun(inner, example_inputs)
    if graph is None:
        graph = graph_package.trace(inner, example_inputs)
    graph = exclude_groups(graph, exclude)
    while True:
        surgery = Surgery(inner, graph, example, optimizers)
        try:
            report = surgery.perform(allow_inexact=allow_inexact, is_uniform=mode == "uniform")
            return replace(report, model=model)
        except UnresolvedSizeError as error:
            if not error.groups:
                raise
            graph = _leave_groups(graph, error)


def _leave_groups(graph: Graph, error: UnresolvedSizeError) -> Graph:
    """Keep the units of groups whose size is a number in the code of a module, with a warning."""
    names = format_list(repr(graph.groups[number].name) for number in error.groups)
    logger.warning(
        "Zero units stay in %s: %s. To remove them, take the number from an attribute of the module, or from the shape "
        "of a tensor.",
        names,
        error,
    )
    groups = (
        replace(group, reason=str(error)) if number in error.groups else group
        for number, group in enumerate(graph.groups)
    )
    return replace(graph, groups=tuple(groups))
