"""Find the groups of coupled units in a torch model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from secateur.graph.group import Group
from secateur.graph.pytorch.attention import find_heads
from secateur.graph.pytorch.tracing import trace, trace_orders

__all__ = ["find_groups", "find_heads", "trace", "trace_orders"]

FINDERS: dict[str, Callable[[nn.Module], list[Group]]] = {"heads": find_heads}
"""Kind of group → the function that finds the groups of that kind in a model."""


def find_groups(model: nn.Module, kind: str) -> Sequence[Group]:
    """Return the groups of a kind, such as ``"heads"``, in a model.

    Examples:
        >>> find_groups(nn.Linear(2, 2), "heads")
        []
    """
    return FINDERS[kind](model)
