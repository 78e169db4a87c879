"""Tests that records become tables and JSON, with the same output as in earlier versions."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from secateur._wording import format_shape
from secateur.config import PruningConfig
from secateur.oneshot.report import CalibratedReport
from secateur.results import Column, LayerResult, PruningReport, Report, Row

LAYERS = (
    LayerResult(
        name="encoder.0.fc1", pattern="4x1", shape=(32, 16), weights=512, pruned_weights=256, units=128, pruned_units=64
    ),
    LayerResult(
        name="head",
        pattern="1xchannel",
        shape=(1000, 16),
        weights=16000,
        pruned_weights=1600,
        units=1000,
        pruned_units=100,
    ),
)
PLAIN = [
    {
        "name": "encoder.0.fc1",
        "pattern": "4x1",
        "shape": [32, 16],
        "weights": 512,
        "pruned_weights": 256,
        "units": 128,
        "pruned_units": 64,
    },
    {
        "name": "head",
        "pattern": "1xchannel",
        "shape": [1000, 16],
        "weights": 16000,
        "pruned_weights": 1600,
        "units": 1000,
        "pruned_units": 100,
    },
]
SHARES = {"sparsity": 1856 / 16512, "unit_sparsity": 164 / 1128, "model_sparsity": 0.0928}

TRAINED = PruningReport(
    layers=LAYERS,
    dense={"out": "output layer"},
    step=7,
    last_step=9,
    model_weights=20000,
    configs=(PruningConfig(), PruningConfig(pattern="1xchannel")),
)
CALIBRATED = CalibratedReport(
    layers=LAYERS,
    dense={},
    step=0,
    last_step=0,
    model_weights=20000,
    solver="wanda",
    errors={"encoder.0.fc1": 0.25, "head": 0.04},
    solver_seconds=1.25,
    seconds=2.5,
)


def test_the_table_of_a_pruning_report() -> None:
    assert str(TRAINED).splitlines() == [
        "Pruned",
        "",
        "layer            shape  pattern    sparsity   weights pruned  units pruned",
        "──────────────────────────────────────────────────────────────────────────",
        "encoder.0.fc1    32×16  4x1          50.00%       256 of 512     64 of 128",
        "head           1000×16  1xchannel    10.00%  1,600 of 16,000  100 of 1,000",
        "",
        "Pruned 11.24% of the weights in 2 layers, which is 9.28% of the model. Left 1 other layer dense.",
        "Units differ in size: the target is a share of units, and 14.54% of them are pruned.",
        "The target was not reached: stopped at step 7 of 9.",
    ]


def test_the_table_of_a_calibrated_report() -> None:
    lines = str(CALIBRATED).splitlines()
    assert lines[2:6] == [
        "layer            shape  pattern    sparsity   weights pruned  units pruned   error",
        "──────────────────────────────────────────────────────────────────────────────────",
        "encoder.0.fc1    32×16  4x1          50.00%       256 of 512     64 of 128  0.2500",
        "head           1000×16  1xchannel    10.00%  1,600 of 16,000  100 of 1,000  0.0400",
    ]
    assert lines[9].startswith("Pruned by wanda in 2.5 s, of which 1.2 s in the solver. The error is ")


def test_json_of_a_pruning_report() -> None:
    plain = {"layers": PLAIN, "dense": {"out": "output layer"}, "step": 7, "last_step": 9, "model_weights": 20000}
    plain |= {"groups": [], "history": []}
    expected = {"format_version": 1} | plain | SHARES | {"is_complete": False}
    assert TRAINED.to_dict() == expected
    assert list(TRAINED.to_dict()) == list(expected)
    assert json.loads(json.dumps(TRAINED.to_dict())) == expected


def test_json_of_a_calibrated_report() -> None:
    plain = {"layers": PLAIN, "dense": {}, "step": 0, "last_step": 0, "model_weights": 20000, "solver": "wanda"}
    errors = {"errors": {"encoder.0.fc1": 0.25, "head": 0.04}, "solver_seconds": 1.25, "seconds": 2.5}
    errors |= {"magnitude_reasons": {}, "blind": {}, "data_sha256": "", "phases": [], "groups": [], "history": []}
    errors |= {"permutation": None}
    assert CALIBRATED.to_dict() == {"format_version": 1} | plain | errors | SHARES | {"is_complete": True}


@dataclass(frozen=True, slots=True)
class City(Row):
    columns: ClassVar[tuple[Column, ...]] = (
        Column("city", "name"),
        Column(">size", "size", format_shape),
        Column(">share", "share", "{:.1%}"),
    )
    computed: ClassVar[tuple[str, ...]] = ("area",)

    name: str
    size: tuple[int, int]
    share: float | None = None

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def is_dimmed(self) -> bool:
        return self.share is None


@dataclass(frozen=True, slots=True)
class Cities(Report):
    cities: list[City]
    largest: City
    notes: str = "x"
    omitted: ClassVar[tuple[str, ...]] = ("notes",)

    @property
    def table_title(self) -> str:
        return "Cities"

    @property
    def rows(self) -> list[City]:
        return self.cities

    @property
    def columns(self) -> tuple[Column, ...]:
        return City.columns


ULM, BONN = City("Ulm", (2, 3), 0.5), City("Bonn", (4, 5))


def test_columns_define_the_cells() -> None:
    assert ULM.cells() == ("Ulm", "2×3", "50.0%")
    assert BONN.cells() == ("Bonn", "4×5", "")


def test_nested_records_become_plain_values() -> None:
    bonn = {"name": "Bonn", "size": [4, 5], "share": None, "area": 20}
    ulm = {"name": "Ulm", "size": [2, 3], "share": 0.5, "area": 6}
    assert Cities([ULM, BONN], BONN).to_dict() == {"format_version": 1, "cities": [ulm, bonn], "largest": bonn}


def test_minor_rows_are_dimmed() -> None:
    table = Cities([ULM, BONN], BONN).table()
    assert (table.columns, table.dimmed, table.footer) == (["city", ">size", ">share"], frozenset({1}), [])


def test_a_report_must_define_its_rows() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Report()  # type: ignore[abstract]
