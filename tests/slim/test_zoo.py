"""Slimmed exhibits of the zoo compute what their masked originals compute, or are refused with a reason."""

import copy

import pytest
import torch

import secateur
from graph.probing import fill, prunable, run
from secateur.errors import LayerError
from secateur.graph import trace
from zoo import ZOO

REFUSED = {
    "MultiQuery": "passes 3 to aten.view, which must become 1",
    "Speech": "passes 12 to aten.expand, which must become 6",
}
"""Exhibits with sizes in their code, and what the error says."""


@pytest.mark.parametrize("name", [name for name in ZOO if name not in REFUSED])
def test_a_slimmed_model_computes_what_the_masked_model_computes(name: str) -> None:
    exhibit = ZOO[name]
    model = exhibit.create()
    graph = trace(model, exhibit.inputs)
    for group in prunable(graph):
        fill(model, group, range(0, group.units, 2), zeros=True)
    masked = run(model, exhibit.inputs)
    report = secateur.slim(model, example_inputs=exhibit.inputs)
    assert (run(model, exhibit.inputs) - masked).abs().max() < 1e-5
    assert report.removed_units == sum((group.units + 1) // 2 for group in prunable(graph))
    assert trace(model, exhibit.inputs).barriers == graph.barriers


@pytest.mark.parametrize("name", REFUSED)
def test_a_size_in_the_code_is_refused(name: str) -> None:
    exhibit = ZOO[name]
    model = exhibit.create()
    for group in prunable(trace(model, exhibit.inputs)):
        fill(model, group, range(0, group.units, 2), zeros=True)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LayerError, match=REFUSED[name]):
        secateur.slim(model, example_inputs=exhibit.inputs)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
