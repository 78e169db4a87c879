"""Tests of ``secateur report``, and of ``--report`` of other commands."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
from cli.kit import run
from cli.test_cli import find_line

EVIL = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _pruned(folder: Path) -> None:
    """Save an artifact with HTML in the name of a layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    net.add_module(EVIL, nn.Linear(3, 8))
    report = secateur.prune(net, {"pattern": "4x1", "target_sparsity": 0.5})
    secateur.save(net, folder / "pruned", report=report)


def test_a_report_of_an_artifact() -> None:
    result = run("report", "pruned")
    assert result.exit_code == 0, result.stderr
    assert find_line(result, "Size: ").endswith("Speed: not measured. Quality: not measured.")
    assert "Written to pruned.html." in result.stderr
    page = Path("pruned.html").read_text("utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_report_as_json_writes_no_file_unless_asked() -> None:
    result = run("report", "pruned", "--json")
    data = json.loads(result.stdout)
    assert (data["format_version"], data["title"], data["configs"][0]["pattern"]) == (1, "pruned", "4x1")
    assert not Path("pruned.html").exists()
    assert json.loads(run("report", "pruned", "--json", "--out", "other.html").stdout) == data
    assert Path("other.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("report", "missing"), 2, "does not exist"),
        (("report", "."), 1, "."),
        (("report", "pruned", "--out", "missing/report.html"), 1, "cannot be written: there is no folder 'missing'"),
    ],
)
def test_what_cannot_be_read_or_written_is_named(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
