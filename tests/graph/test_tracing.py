"""The dependency graph of torch models: the groups that it finds, and a proof that they are right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateur.graph import Graph, Group, Role, trace
from secateur.graph.grouping import build_graph
from secateur.graph.pytorch.recording import record_forward
from secateur.graph.pytorch.tracing import split_inputs
from secateur.graph.rules import run_rules
from zoo import ZOO, Exhibit


def prunable(graph: Graph, kind: str | None = None, *, inexact: bool = False) -> list[Group]:
    return [
        group
        for group in graph.groups
        if group.obstacle is None and (group.inexact is not None) == inexact and kind in (None, group.kind)
    ]


def sizes(groups: Sequence[Group]) -> dict[str, int]:
    return {group.name: group.units for group in groups}


def describe(graph: Graph) -> list[Any]:
    """Everything about the groups that can be pruned, independent of their order."""
    return sorted(
        (group.units, group.kind, str(group.inexact is None), member.parameter, member.axis, member.role.value, indices)
        for group in graph.groups
        if group.obstacle is None
        for member in group.members
        for indices in [str(member.index_map.indices().tolist())]
    )


def flatten(outputs: Any) -> torch.Tensor:
    tensors = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def run(model: nn.Module, inputs: Any) -> torch.Tensor:
    args, kwargs = split_inputs(model, inputs)
    with torch.no_grad():
        return flatten(model(*args, **kwargs))


def get_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def fill(model: nn.Module, group: Group, pruned: Sequence[int], *, zeros: bool) -> None:
    """Set the consumers of some units to zero, or all their other slices to noise."""
    tensors = get_tensors(model)
    with torch.no_grad():
        for member in group.members:
            if (member.role is Role.CONSUMER) is zeros:
                indices = torch.as_tensor(member.index_map.indices()[pruned].reshape(-1))
                slices = tensors[member.parameter].index_select(member.axis, indices)
                values = torch.zeros_like(slices) if zeros else torch.rand_like(slices) + 0.5
                tensors[member.parameter].index_copy_(member.axis, indices, values)


def probe(exhibit: Exhibit, group: Group) -> float:
    """Return how far the output changes if half of the units change, but nothing reads them."""
    model = exhibit.create()
    pruned = list(range(0, group.units, 2))
    fill(model, group, pruned, zeros=True)
    masked = run(model, exhibit.inputs)
    fill(model, group, pruned, zeros=False)
    fill(model, group, pruned, zeros=True)  # noise in rows must not bring back zeros in columns
    return float((run(model, exhibit.inputs) - masked).abs().max() / masked.abs().max().clamp_min(1))


@pytest.mark.parametrize("name", ZOO)
def test_the_graph_has_the_expected_groups(name: str) -> None:
    exhibit = ZOO[name]
    graph = trace(exhibit.create(), exhibit.inputs)
    assert sizes(prunable(graph, "channels")) == exhibit.channels
    assert {group.units for group in prunable(graph, "heads")} == {*exhibit.heads.values()}
    assert sizes(prunable(graph, inexact=True)) == exhibit.inexact
    assert tuple(barrier.module for barrier in graph.barriers) == exhibit.barriers


@pytest.mark.parametrize("name", ZOO)
def test_nothing_depends_on_units_without_consumers(name: str) -> None:
    exhibit = ZOO[name]
    graph = trace(exhibit.create(), exhibit.inputs)
    for group in prunable(graph):
        assert probe(exhibit, group) < 1e-5, group.name


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].inexact])
def test_inexact_groups_are_inexact(name: str) -> None:
    exhibit = ZOO[name]
    graph = trace(exhibit.create(), exhibit.inputs)
    for group in prunable(graph, inexact=True):
        assert probe(exhibit, group) > 1e-3, group.name


@pytest.mark.parametrize("name", ZOO)
def test_the_output_depends_on_units_with_consumers(name: str) -> None:
    """Otherwise the probe above could not fail."""
    exhibit = ZOO[name]
    graph = trace(exhibit.create(), exhibit.inputs)
    for group in prunable(graph):
        model = exhibit.create()
        before = run(model, exhibit.inputs)
        fill(model, group, range(0, group.units, 2), zeros=True)
        assert not torch.equal(run(model, exhibit.inputs), before), group.name


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_is_in_a_group_or_has_a_reason(name: str) -> None:
    exhibit = ZOO[name]
    model = exhibit.create()
    graph = trace(model, exhibit.inputs)
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
    assert describe(eager) == describe(trace(model, exhibit.inputs))


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
