"""The dependency graph of torch models: the groups that it finds, and a proof that they are right."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch

from graph.probing import describe, fill, get_tensors, probe, prunable, run
from secateur.graph import Graph, Group, trace
from secateur.graph.grouping import build_graph
from secateur.graph.pytorch.recording import record_forward
from secateur.graph.pytorch.tracing import split_inputs
from secateur.graph.rules import run_rules
from zoo import ZOO


@cache
def graph_of(name: str) -> Graph:
    """The graph of an exhibit, traced once for all tests."""
    return trace(ZOO[name].create(), ZOO[name].inputs)


def sizes(groups: Sequence[Group]) -> dict[str, int]:
    return {group.name: group.units for group in groups}


@pytest.mark.parametrize("name", ZOO)
def test_the_graph_has_the_expected_groups(name: str) -> None:
    exhibit = ZOO[name]
    graph = graph_of(name)
    assert sizes(prunable(graph, "channels")) == exhibit.channels
    assert {group.units for group in prunable(graph, "heads")} == {*exhibit.heads.values()}
    assert sizes(prunable(graph, inexact=True)) == exhibit.inexact
    assert tuple(barrier.module for barrier in graph.barriers) == exhibit.barriers


@pytest.mark.parametrize("name", ZOO)
def test_nothing_depends_on_units_without_consumers(name: str) -> None:
    exhibit = ZOO[name]
    graph = graph_of(name)
    for group in prunable(graph):
        assert probe(exhibit.create, exhibit.inputs, group) < 1e-5, group.name


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].inexact])
def test_inexact_groups_are_inexact(name: str) -> None:
    exhibit = ZOO[name]
    graph = graph_of(name)
    for group in prunable(graph, inexact=True):
        assert probe(exhibit.create, exhibit.inputs, group) > 1e-3, group.name


@pytest.mark.parametrize("name", ZOO)
def test_the_output_depends_on_units_with_consumers(name: str) -> None:
    """Otherwise the probe above could not fail."""
    exhibit = ZOO[name]
    graph = graph_of(name)
    for group in prunable(graph):
        model = exhibit.create()
        before = run(model, exhibit.inputs)
        fill(model, group, range(0, group.units, 2), zeros=True)
        assert not torch.equal(run(model, exhibit.inputs), before), group.name


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_is_in_a_group_or_has_a_reason(name: str) -> None:
    exhibit = ZOO[name]
    model = exhibit.create()
    graph = graph_of(name)
    members = {
        name for group in graph.groups for member in group.members for name in (member.parameter, *member.aliases)
    }
    assert {name for name, tensor in model.named_parameters() if tensor.ndim > 1} <= members


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("Branching", "TorchAttention")])
def test_an_eager_run_gives_the_same_groups_as_an_exported_model(name: str) -> None:
    exhibit = ZOO[name]
    model = exhibit.create()
    program = record_forward(model, *split_inputs(model, exhibit.inputs))
    eager = build_graph(run_rules(program), program.aliases)
    assert describe(eager) == describe(graph_of(name))


def test_tracing_changes_nothing() -> None:
    exhibit = ZOO["Residual"]
    model = exhibit.create().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in get_tensors(model).items()}
    state = torch.get_rng_state()
    trace(model, exhibit.inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in get_tensors(model).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.norm.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_units_have_the_indices_of_all_their_slices() -> None:
    graph = trace(ZOO["GatedFused"].create(), ZOO["GatedFused"].inputs)
    (group,) = prunable(graph)
    maps = {member.parameter: member.index_map.indices() for member in group.members}
    assert np.array_equal(maps["both.weight"], [[unit, unit + 8] for unit in range(8)])
    assert np.array_equal(maps["down.weight"], [[unit] for unit in range(8)])
