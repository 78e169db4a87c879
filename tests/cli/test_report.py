"""Tests of ``secateur report``, and of ``--report`` of other commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from cli.kit import model, run
from cli.test_cli import find_line
from secateur.oneshot import Execution, Progress

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
        (("report", "."), 1, "must be an artifact"),
        (("report", "pruned", "--out", "missing/report.html"), 1, "cannot be written: there is no folder 'missing'"),
    ],
)
def test_what_cannot_be_read_or_written_is_named(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())


def test_a_report_of_an_unfinished_run_says_so() -> None:
    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    execution = Execution(folder="out.part", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(model(), "2:4", calibration=[torch.randn(8, 8)], solver="wanda", execution=execution)
    result = run("report", "out.part")
    assert result.exit_code == 0, result.stderr
    page = Path("out.part.html").read_text("utf-8")
    assert "This run is not complete." in page
    assert "not pruned yet: the run was interrupted" in page


@pytest.fixture
def files(folder: Path) -> None:
    """Write weights and calibration data."""
    torch.manual_seed(0)
    torch.save(model().state_dict(), folder / "net.pt")
    np.savez(folder / "inputs.npz", np.random.default_rng(0).normal(size=(16, 8)).astype("float32"))


NET = ("cli_nets:build", "--weights", "net.pt", "--calibration", "inputs.npz")


@pytest.mark.usefixtures("files")
def test_reports_of_what_prune_and_bench_did() -> None:
    result = run("prune", *NET, "--pattern", "2:4", "--solver", "wanda", "--out", "out", "--report", "prune.html")
    assert result.exit_code == 0, result.stderr
    assert "Report written to prune.html." in result.stderr
    page = Path("prune.html").read_text("utf-8")
    for text in (
        "cli_nets:build, pruned",
        "lost output energy",
        "the inputs in inputs.npz",
        "calibration data",
        "Wanda",
    ):
        assert text in page
    assert page.count("data:image/png") == 2
    bench = ("bench", "out", "--model", "cli_nets:build", "--inputs", "inputs.npz", "--rounds", "1")
    result = run(*bench, "--report", "bench.html", "--json")
    assert result.exit_code == 0, result.stderr
    json.loads(result.stdout)
    page = Path("bench.html").read_text("utf-8")
    for text in ("forward pass", "as fast", 'id="roofline"', "dense ms", "tensors on disk", "data:image/png"):
        assert text in page


@pytest.mark.usefixtures("files")
def test_a_report_of_what_slim_did() -> None:
    options = ("--pattern", "channels", "--target-sparsity", "0.5", "--out", "slim")
    result = run("slim", *NET, *options, "--report", "slim.html")
    assert result.exit_code == 0, result.stderr
    page = Path("slim.html").read_text("utf-8")
    for text in ("cli_nets:build, slimmed", 'id="unit_groups"', "out_features=8", "% smaller", "Channels and heads"):
        assert text in page


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("command", ["prune", "slim", "bench"])
def test_a_report_that_cannot_be_written_stops_the_command_before_it_starts(command: str) -> None:
    options = ("--inputs", "inputs.npz") if command == "bench" else (*NET[1:], "--pattern", "channels", "--out", "out")
    result = run(command, "cli_nets:build", *options, "--report", "missing/report.html")
    assert result.exit_code == 1
    assert "there is no folder 'missing'" in result.stderr
    assert "building" not in result.output
    assert not Path("out").exists()
