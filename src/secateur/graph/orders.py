"""Find the units of a model whose order is free: the dense model computes the same in any order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.graph.graph import Graph
from secateur.graph.group import Group
from secateur.graph.labels import find_axes
from secateur.graph.tracer import Tracer

__all__ = ["FreeOrder", "list_free_orders"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class FreeOrder:
    """Units that can be reordered.

    Attributes:
        group: The group of the units.
        rows: The units that can change places with each other, such as the channels of one head; each in ascending
            order. Rows with one unit are left out.
    """

    group: Group
    rows: tuple[Indices, ...]


def list_free_orders(tracer: Tracer, graph: Graph) -> list[FreeOrder]:
    """List the groups with units that can be reordered.

    Args:
        tracer: A tracer that keeps sizes, after all rules ran.
        graph: The graph built from it.
    """
    assert tracer.keeps_sizes
    keys = _number_rows(tracer)
    firsts = {(axis.parameter, axis.axis): axis.first for axis in tracer.axes}
    free = []
    for group in graph.groups:
        if group.reason is None and group.inexact is None:
            labels = [firsts[member.parameter, member.axis] + member.index_map.indices() for member in group.members]
            of_unit = np.sum([keys[part].sum(axis=1) for part in labels], axis=0)
            rows = [np.flatnonzero(of_unit == key) for key in dict.fromkeys(of_unit.tolist())]
            if rows := [row for row in rows if len(row) > 1]:
                free.append(FreeOrder(group=group, rows=tuple(rows)))
    return free


def _number_rows(tracer: Tracer) -> npt.NDArray[np.uint64]:
    """Return a number for each label, which is equal for labels that are always in the same rows.

    Random numbers of all rows that contain a label are added, so equal sums are no coincidence.
    """
    generator = np.random.default_rng(0)
    numbers = np.zeros(tracer.count, dtype=np.uint64)
    for labels in tracer.rectangles:
        rows = labels.reshape(-1, labels.shape[find_axes(labels)[-1]])
        summands = generator.integers(2**63, size=(len(rows), 1), dtype=np.uint64)
        np.add.at(numbers, rows, np.broadcast_to(summands, rows.shape))
    return numbers
