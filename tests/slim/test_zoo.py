"""Slimmed exhibits of the zoo compute what their masked originals compute, or keep groups for a reason."""

import pytest

import secateur
from graph.probing import fill, prunable, run
from secateur.graph import trace
from zoo import ZOO

KEPT = {
    "MultiQuery": ("v", "passes 3 to aten.view, which must become 1"),
    "Speech": ("query", "passes 12 to aten.expand, which must become 6"),
}
"""Exhibits with sizes in their code: the group that stays, and the reason."""


@pytest.mark.parametrize("name", [name for name in ZOO if name not in KEPT])
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


@pytest.mark.parametrize("name", KEPT)
def test_groups_with_a_size_in_the_code_stay(name: str) -> None:
    exhibit, (kept, reason) = ZOO[name], KEPT[name]
    model = exhibit.create()
    graph = trace(model, exhibit.inputs)
    for group in prunable(graph):
        fill(model, group, range(0, group.units, 2), zeros=True)
    masked = run(model, exhibit.inputs)
    report = secateur.slim(model, example_inputs=exhibit.inputs)
    assert (run(model, exhibit.inputs) - masked).abs().max() < 1e-5
    rows = {row.name: row for row in report.groups if row.zero_units}
    assert [name for name, row in rows.items() if not row.removed_units] == [kept]
    assert reason in rows[kept].reason
