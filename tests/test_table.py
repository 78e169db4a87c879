"""Tests of tables: folded blocks, cut names, HTML and short representations."""

from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import secateur
from secateur._table import MAX_ROWS, Table


def make_table(names: list[str], *, values: list[str] | None = None, dimmed: frozenset[int] = frozenset()) -> Table:
    cells = values or ["50%"] * len(names)
    rows = [(name, "Linear", cell) for name, cell in zip(names, cells, strict=True)]
    return Table(title="T", columns=("layer", "type", ">share"), rows=rows, dimmed=dimmed)


def list_names(table: Table, width: int = 120) -> list[str]:
    return [line.split("  ")[0] for line in table.text(width).splitlines()[4:] if line]


BLOCKS = [f"model.layers.{block}.{part}" for block in range(30) for part in ("self_attn.q_proj", "mlp.up_proj")]


def test_equal_rows_of_repeated_blocks_are_one_row() -> None:
    names = list_names(make_table(["embed", *BLOCKS, "head"]))
    assert names == ["embed", "model.layers.{0–29}.self_attn.q_proj", "model.layers.{0–29}.mlp.up_proj", "head"]


def test_rows_with_other_values_stay() -> None:
    values = ["40%" if name == "model.layers.3.mlp.up_proj" else "50%" for name in BLOCKS]
    assert list_names(make_table(BLOCKS, values=values)) == [
        "model.layers.{0–29}.self_attn.q_proj",
        "model.layers.{0–2,4–29}.mlp.up_proj",
        "model.layers.3.mlp.up_proj",
    ]


def test_dimmed_rows_stay_dimmed() -> None:
    table = make_table(BLOCKS, dimmed=frozenset(range(0, 60, 2)))
    rows, dimmed = table._fold_rows()
    assert [rows[index][0] for index in dimmed] == ["model.layers.{0–29}.self_attn.q_proj"]


def test_experts_of_blocks_fold_where_every_block_has_them() -> None:
    names = [f"layers.{block}.experts.{expert}.w1" for block in range(4) for expert in range(8)]
    assert list_names(make_table(names)) == ["layers.{0–3}.experts.{0–7}.w1"]
    assert list_names(make_table(names[:-1])) == [
        *(f"layers.{block}.experts.{{0–7}}.w1" for block in range(3)),
        "layers.3.experts.{0–6}.w1",
    ]


def test_numbers_inside_words_do_not_fold() -> None:
    names = [f"conv{index}" for index in range(30)]
    assert list_names(make_table(names)) == names


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([f"blocks.{block:02}.up" for block in range(30)], 11),  # "00" is not the number 0
        (["a.01", "a.1"] * 20, 40),
        (["", "a.1"] * 20, 40),
        ([f"a\0.{number}.{number}" for number in range(30)], 30),
        ([".".join("01"[part == row] for part in range(1500)) for row in range(30)], 30),
        ([f"a.{'1' * 5000}.b{row}" for row in range(30)], 30),
    ],
    ids=["leading zeros", "equal numbers", "equal names", "NUL", "many numbers", "huge number"],
)
def test_unusual_names_do_not_fold(names: list[str], count: int) -> None:
    table = make_table(names)
    assert table._repr_html_().count("<tr") == 1 + count
    assert names[0].replace("\0", "\\x00")[:8] in table.text()


def test_short_tables_show_every_row() -> None:
    assert list_names(make_table(BLOCKS[:MAX_ROWS])) == BLOCKS[:MAX_ROWS]


def test_long_names_are_cut_in_the_middle() -> None:
    names = [f"vision_tower.encoder.{part}.attention_output_projection" for part in ("first", "second")]
    lines = make_table(names).text(60).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert lines[4].startswith("vision_tower.e…")
    assert lines[4].split()[0].endswith("t_projection")
    assert lines[4].split()[1:] == ["Linear", "50%"]


def test_cuts_keep_names_different_and_ranges_whole() -> None:
    parts = ("attention.self.query", "attention.self.key", "intermediate.dense", "attention.output.dense")
    names = [f"bert.encoder.layer.{block}.{part}.weight" for block in range(3) for part in parts]
    lines = make_table(names).text(52).splitlines()[4:16]
    cut = [line.split()[0] for line in lines]
    assert len(set(cut)) == 12
    assert all(f"layer.{index // 4}" in name for index, name in enumerate(cut))
    folded = [line.split()[0] for line in make_table([*names, *BLOCKS]).text(52).splitlines()[4:]]
    assert all(name.count("{") == name.count("}") for name in folded if name.startswith("bert"))


def test_names_that_would_be_the_same_are_not_cut() -> None:
    names = [f"{'a' * 40}.{part}.{'b' * 60}" for part in ("x", "y")]
    text = make_table(names).text(60)
    assert "…" not in text
    assert ".x" in "".join(text.split())


class Cells(HTMLParser):
    """Collects the text of the cells, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - as in the base class
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.tags[-1] in ("td", "th"):
            self.cells.append(data)


def read_cells(html: str) -> list[str]:
    parser = Cells()
    parser.feed(html)
    parser.close()
    assert parser.tags == []
    return parser.cells


def test_notebooks_show_a_table() -> None:
    assert read_cells(make_table(["<b>", "x"])._repr_html_()) == [
        "layer",
        "type",
        "share",
        "<b>",
        "Linear",
        "50%",
        "x",
        "Linear",
        "50%",
    ]


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def test_a_plan_is_short_in_a_console_and_a_table_in_a_notebook(net: nn.Sequential) -> None:
    plan = secateur.plan(net, {"pattern": "2:4"})
    assert repr(plan) == "<Plan: 1 of 2 layers with 64 weights will be pruned.>"
    assert read_cells(plan._repr_html_())[0] == "layer"


def test_a_report_is_short_in_a_console_and_a_table_in_a_notebook(net: nn.Sequential) -> None:
    batches = [torch.randn(8, 8, generator=torch.Generator().manual_seed(0))]
    for options in ({}, {"calibration": batches, "solver": "wanda"}):
        report = secateur.prune(net, {"pattern": "2:4"}, **options)
        text = "Pruned 50.00% of the weights in 1 layer, which is 29.63% of the model. Left 1 other layer dense."
        assert repr(report) == f"<{type(report).__name__}: {text}>"
        assert read_cells(report._repr_html_())[0] == "layer"
