"""The report of a compiled model."""

from dataclasses import replace

import pytest

import secateur.runtime
from secateur.runtime import CompileResult, LayerReport, RuntimeReport

DENSE = LayerReport(name="first", shape=(8, 4), pattern=None, sparsity=0.0, dense_bytes=128, bytes=128)
SPARSE = LayerReport(
    name="second",
    shape=(8, 4),
    pattern="4x1",
    sparsity=0.75,
    rows=16,
    dense_seconds=2e-3,
    sparse_seconds=1e-3,
    chosen="4x1 kernel, float32",
    reason="faster",
    dense_bytes=128,
    bytes=40,
    error=1e-7,
)


@pytest.fixture
def report() -> RuntimeReport:
    return RuntimeReport(layers=(DENSE, SPARSE), threads=2, device="cpu", dense_seconds=0.003, seconds=0.002)


def test_rows_show_the_measurements() -> None:
    assert DENSE.cells() == ("first", "8×4", "", "0.0%", "", "", "", "", "", "dense", "")
    name, *cells, reason = SPARSE.cells()
    assert (name, reason) == ("second", "faster")
    assert cells == ["8×4", "4x1", "75.0%", "16", "2.000", "1.000", "2.00×", "4.0×", "4x1 kernel, float32"]
    assert (DENSE.is_dimmed, SPARSE.is_dimmed) == (True, False)


def test_json_contains_computed_values(report: RuntimeReport) -> None:
    plain = report.to_dict()
    assert (plain["replaced"], plain["speedup"]) == (1, 1.5)
    assert [layer["limit"] for layer in plain["layers"]] == [1.0, 4.0]
    assert [layer["speedup"] for layer in plain["layers"]] == [None, 2.0]


def test_footer_summarizes_the_layers(report: RuntimeReport) -> None:
    assert report.footer[0] == "1 of 2 layers replaced; their weights take 168 of 256 bytes (65.6%)."
    assert report.footer[1] == "One call of the model: 3.00 ms dense, 2.00 ms now (1.50×), on cpu with 2 threads."


@pytest.mark.parametrize(("load", "is_busy"), [(0.0, False), (1.2, False), (1.3, True)])
def test_footer_warns_about_a_busy_machine(report: RuntimeReport, load: float, is_busy: bool) -> None:
    assert replace(report, load=load).footer[-1].startswith("These times are unreliable") is is_busy


def test_a_printed_result_is_its_report(report: RuntimeReport) -> None:
    assert str(CompileResult("model", report)) == str(report)


def test_deprecated_names_warn(report: RuntimeReport) -> None:
    with pytest.deprecated_call(match=r"RuntimeReport\.exchanged is deprecated\. Use RuntimeReport\.replaced\."):
        assert report.exchanged == 1
    with pytest.deprecated_call(match=r"secateur\.runtime\.Compiled is deprecated"):
        assert secateur.runtime.Compiled is CompileResult
    with pytest.deprecated_call(match=r"secateur\.runtime\.LayerRow is deprecated"):
        assert secateur.runtime.LayerRow is LayerReport
