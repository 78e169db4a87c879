"""Tests of the heat map in pages: where each loss is, its color, and that names are text."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.test_page import EVIL, FULL, Reader
from secateur.report import render_page
from secateur.report.sections import make_sensitivity_chart
from secateur.report.sections.sensitivity_chart import MAX_ROWS
from secateur.results import LayerSensitivity, SensitivityMap, SensitivityPoint, SensitivityReport, Summary

pytest.importorskip("jinja2")

CASES = [("1x1", 0.25), ("1x1", 0.5), ("2:4", 0.5)]


def make_layer(name: str, *losses: float | None) -> LayerSensitivity:
    points = [
        SensitivityPoint(pattern=pattern, sparsity=sparsity, units=8, pruned_units=4, loss=loss)
        for (pattern, sparsity), loss in zip(CASES, losses, strict=True)
        if loss is not None
    ]
    return LayerSensitivity(name=name, shape=(8, 8), sha256="", points=tuple(points))


FEW = SensitivityMap(quantity="lost energy", layers=(make_layer("a", 0.01, 0.1, 1.0), make_layer("b", -0.5, 0.0, None)))


def draw(losses: SensitivityMap) -> tuple[dict[str, Any], Reader, list[dict[str, str | None]]]:
    """Return the content, the page and the rectangles of the cells, without the legend."""
    summary = Summary(title="net", sensitivity=losses)
    content = make_sensitivity_chart(summary)
    assert content is not None
    reader = Reader(render_page(summary))
    assert reader.sections == ["sensitivity_chart"]
    return content, reader, [tag for name, tag in reader.tags if name == "rect" and tag.get("class") != "shade"]


def test_few_layers_are_rows() -> None:
    content, reader, cells = draw(FEW)
    [group] = content["groups"]
    assert [label["text"] for label in group["labels"]] == ["1x1 25%", "1x1 50%", "2:4 50%"]
    assert [row["name"] for row in group["rows"]] == ["a", "b"]
    assert [[cell["text"] for cell in row["cells"]] for row in group["rows"]] == [
        ["0.01", "0.1", "1"],
        ["-0.5", "0", ""],
    ]
    assert [cell.get("class") for cell in cells] == [None, None, None, "gain", None, "missing"]
    opacities = [float(cell["fill-opacity"] or 0) for cell in cells]
    assert opacities[:3] == [0.05, 0.525, 1.0]
    assert opacities[4] == 0.05
    assert "b, 2:4 50%: not measured" in reader.text
    assert "The lost energy if only this layer is pruned." in reader.text
    assert "green cells are improvements" in reader.text
    xs, ys = ({cell[axis] for cell in cells} for axis in ("x", "y"))
    assert (len(xs), len(ys)) == (3, 2)


def test_repeated_blocks_are_columns() -> None:
    blocks = range(MAX_ROWS)
    layers = [make_layer(f"layers.{block}.{name}", 0.1, 0.2, 0.4) for block in blocks for name in ("q", "k")]
    missing = layers.pop(5)
    content, reader, cells = draw(SensitivityMap(quantity="x", layers=(*layers, make_layer("head", 0.1, 0.2, 0.4))))
    assert missing.name == "layers.2.k"
    assert [group["heading"] for group in content["groups"]] == ["1x1 25%", "1x1 50%", "2:4 50%"]
    for group in content["groups"]:
        assert [row["name"] for row in group["rows"]] == ["layers.*.q", "layers.*.k", "head"]
        assert [len(row["cells"]) for row in group["rows"]] == [MAX_ROWS, MAX_ROWS - 1, 1]
        assert group["labels"][0]["text"] == "–"
    assert len(cells) == 3 * (2 * MAX_ROWS - 1 + 1)
    assert len({(cell["x"], cell["y"]) for cell in cells}) == len(cells)
    assert reader.text.count("layers.23.k, 2:4 50%: 0.4") == 1
    title = content["groups"][0]["rows"][1]["cells"][2]["title"]
    assert title == "layers.3.k, 1x1 25%: 0.1"  # after the missing one


def test_many_different_layers_are_rows() -> None:
    layers = tuple(make_layer(f"layer{number}", 0.1, 0.2, 0.3) for number in range(MAX_ROWS + 1))
    content, _, _ = draw(SensitivityMap(quantity="x", layers=layers))
    assert len(content["groups"][0]["rows"]) == MAX_ROWS + 1


def test_a_few_tiny_losses_do_not_make_all_others_alike() -> None:
    layers = tuple(make_layer(f"layer{number}", 1.0, 10.0, 100.0) for number in range(MAX_ROWS))
    plain = draw(SensitivityMap(quantity="x", layers=layers))[2]
    tiny = draw(SensitivityMap(quantity="x", layers=(*layers[1:], make_layer("tiny", 1e-3, 10.0, 100.0))))[2]
    opacities = [{cell["fill-opacity"] for cell in cells} for cells in (plain, tiny)]
    assert opacities[0] == opacities[1] == {"0.050", "0.525", "1.000"}


@pytest.mark.parametrize("losses", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (-1.0, -2.0, -3.0), (1e-300, 1e-3, 1e300)])
def test_any_losses_have_colors(losses: tuple[float, ...]) -> None:
    _, _, cells = draw(SensitivityMap(quantity="x", layers=(make_layer("a", *losses),)))
    assert all(0 < float(cell["fill-opacity"] or 0) <= 1 for cell in cells)


def test_markup_in_names_is_shown_and_not_run() -> None:
    layers = (make_layer(EVIL, 0.1, 0.2, 0.3), make_layer("a\x1bb", 0.1, 0.2, 0.3))
    _, reader, _ = draw(SensitivityMap(quantity=EVIL, layers=layers))
    tags = [name for name, _ in reader.tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert reader.text.count("<script>alert(1)</script>") >= 5
    assert "\x1b" not in reader.text


def test_a_report_is_a_page(tmp_path: Path) -> None:
    report = SensitivityReport(
        metric="layer", solver=EVIL, layers=FEW.layers, dense={"out": EVIL}, misfits={}, out_of_reach={}
    )
    report.to_html(tmp_path / "scan.html", more=[report])
    reader = Reader((tmp_path / "scan.html").read_text("utf-8"))
    assert reader.sections == ["run_description", "sensitivity_chart", "dense_layers"]
    assert EVIL in reader.text
    assert EVIL not in replace(report, solver=EVIL)._repr_html_()


def test_joined_summaries_keep_the_first_heat_map() -> None:
    joined = FULL.join(Summary(title="x", sensitivity=FEW), Summary(title="y", sensitivity=replace(FEW, quantity="y")))
    assert joined.sensitivity == FEW
    assert 'class="heat"' in render_page(joined)
    assert not re.search('<svg class="heat"', render_page(FULL))
