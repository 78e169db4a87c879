"""A graph that is wrong in one place never leads to a wrong model: the checks of `secateur.slim` refuse it."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from graph.probing import fill, prunable, run
from secateur.errors import LayerError
from secateur.graph import RULES, ExplicitMap, Graph, Group, Member, Role
from secateur.graph.program import Program
from secateur.graph.pytorch.tracing import record, trace_program
from slim.broken_rules import broken_rule
from zoo import ZOO

KEPT = ("MultiQuery", "Speech")
"""Exhibits with sizes in their code, of which groups stay anyway."""

NAMES = [name for name, exhibit in ZOO.items() if name not in KEPT and exhibit.channels | exhibit.heads]


@cache
def record_exhibit(name: str) -> Program:
    """The operations of an exhibit, recorded once for all graphs."""
    return record(ZOO[name].create(), ZOO[name].inputs)


@cache
def graph_of(name: str) -> Graph:
    """The graph of an exhibit."""
    return trace_program(ZOO[name].create(), record_exhibit(name))


@cache
def create_masked(name: str) -> tuple[nn.Module, torch.Tensor]:
    """An exhibit in which nothing reads half of the units of each group, and its output."""
    model = ZOO[name].create()
    for group in prunable(graph_of(name)):
        fill(model, group, range(0, group.units, 2), zeros=True)
    return model, run(model, ZOO[name].inputs)


def slim_with(name: str, graph: Graph) -> str:
    """Slim an exhibit with a graph: ``"right"``, ``"wrong"``, or ``"refused"``, in whole or for one group."""
    original, masked = create_masked(name)
    model, inputs = copy.deepcopy(original), ZOO[name].inputs
    try:
        report = secateur.slim(model, example_inputs=inputs, graph=graph)
    except LayerError:
        before, after = original.state_dict(), model.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        return "refused"
    if not torch.allclose(run(model, inputs), masked, atol=1e-5):
        return "wrong"
    return "refused" if any(row.reason.startswith("the code of") for row in report.groups) else "right"


def mutate(graph: Graph, group: Group, member: Member, other: Member | None) -> Graph:
    """Replace a member of a group; ``None``: leave it out."""
    members = [item for item in (other if item is member else item for item in group.members) if item is not None]
    changed = replace(group, members=tuple(members))
    return replace(graph, groups=tuple(changed if item is group else item for item in graph.groups))


def shift(member: Member) -> Member:
    """Give every unit the indices of the next one."""
    indices = np.roll(member.index_map.indices(), 1, axis=0)
    return replace(member, index_map=ExplicitMap(tuple(map(tuple, indices.tolist()))))


@pytest.mark.parametrize("name", NAMES)
def test_a_member_that_is_missing_or_off_by_one_never_breaks_a_model(name: str) -> None:
    graph = graph_of(name)
    assert slim_with(name, graph) == "right"
    for group in prunable(graph):
        for member in group.members:
            missing = slim_with(name, mutate(graph, group, member, None))
            # Without its only reader, a group has nothing to remove.
            assert missing == "refused" or (missing == "right" and member.role is Role.CONSUMER), member.parameter
            shifted = slim_with(name, mutate(graph, group, member, shift(member)))
            # What is off by one may make no difference, as the bias of keys, or leave no unit that nothing reads.
            assert shifted == "refused" or (shifted == "right" and member.role is not Role.PRODUCER), member.parameter


@cache
def list_operations() -> dict[str, list[str]]:
    """Operation with a rule → the exhibits that call it, up to two."""
    operations: dict[str, list[str]] = {}
    for name in NAMES:
        for operation in {call.operation for call in record_exhibit(name).calls} & RULES.keys():
            operations.setdefault(operation, []).append(name)
    return {operation: names[:2] for operation, names in sorted(operations.items())}


@pytest.mark.parametrize("fault", ["missing", "off by one"])
def test_a_broken_rule_never_breaks_a_model(fault: str) -> None:
    results = {}
    for operation, names in list_operations().items():
        with broken_rule(operation, fault):
            graphs = {name: trace_program(ZOO[name].create(), record_exhibit(name)) for name in names}
        results[operation] = {slim_with(name, graph) for name, graph in graphs.items()}
    assert "wrong" not in set().union(*results.values())
