"""Exhibits of the zoo are slimmed twice, without a group, and where removal is not exact."""

import copy

import pytest
import torch

import secateur
from graph.probing import fill, prunable, run
from secateur.graph import trace
from slim.test_zoo import KEPT
from zoo import ZOO

SOME = [name for number, name in enumerate(ZOO) if number % 4 == 0 and name != "GroupedQuery"]


@pytest.mark.parametrize("name", SOME)
def test_a_slimmed_model_can_be_slimmed_again(name: str) -> None:
    exhibit = ZOO[name]
    model = exhibit.create()
    for _ in range(2):
        graph = trace(model, exhibit.inputs)
        for group in prunable(graph):
            fill(model, group, range(0, group.units, 2), zeros=True)
        masked = run(model, exhibit.inputs)
        secateur.slim(model, example_inputs=exhibit.inputs, graph=graph)
        assert (run(copy.deepcopy(model), exhibit.inputs) - masked).abs().max() < 1e-5


@pytest.mark.parametrize("name", KEPT)
def test_a_group_that_is_excluded_stays(name: str) -> None:
    exhibit, (kept, _) = ZOO[name], KEPT[name]
    model = exhibit.create()
    graph = trace(model, exhibit.inputs)
    for group in prunable(graph):
        fill(model, group, range(0, group.units, 2), zeros=True)
    masked = run(model, exhibit.inputs)
    report = secateur.slim(model, example_inputs=exhibit.inputs, graph=graph, exclude=[kept])
    assert [group.name for group in report.groups if group.reason == "it is excluded by name"] == [kept]
    assert report.removed_units == sum((group.units + 1) // 2 for group in prunable(graph) if group.name != kept)
    assert (run(model, exhibit.inputs) - masked).abs().max() < 1e-5


@pytest.mark.parametrize("name", [name for name, exhibit in ZOO.items() if exhibit.inexact])
def test_inexact_groups_go_when_allowed(name: str) -> None:
    exhibit = ZOO[name]
    model = exhibit.create()
    graph = trace(model, exhibit.inputs)
    for group in prunable(graph, inexact=True):
        fill(model, group, range(0, group.units, 2), zeros=True)
    report = secateur.slim(model, example_inputs=exhibit.inputs, graph=graph, allow_inexact=True)
    assert report.inexact_difference is not None
    assert report.removed_units > 0
    assert bool(torch.isfinite(run(model, exhibit.inputs)).all())
