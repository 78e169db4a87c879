"""Build the dependency graph of a torch model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.graph.graph import Graph
from secateur.graph.grouping import build_graph
from secateur.graph.program import Program
from secateur.graph.pytorch.export import read_exported
from secateur.graph.pytorch.rules import __name__ as _  # noqa: F401
from secateur.graph.rules import run_rules

__all__ = ["record", "trace"]


def trace(model: nn.Module, example_inputs: Any) -> Graph:
    """See `secateur.graph.trace`."""
    program = record(model, example_inputs)
    return build_graph(run_rules(program), program.aliases)


def record(model: nn.Module, example_inputs: Any) -> Program:
    args, kwargs = ((), example_inputs) if isinstance(example_inputs, dict) else (example_inputs, {})
    exported = torch.export.export(model, args, kwargs, strict=False)
    return read_exported(model, exported)
