"""Tests of ``secateur sensitivity``, and of ``--allocation`` with its result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import secateur
from cli.kit import model, run, run_json
from secateur.results import SensitivityReport

NET = ("cli_nets:build", "--weights", "net.pt")
SCAN = ("sensitivity", *NET, "--calibration", "inputs.npz")


@pytest.fixture(autouse=True)
def _files(folder: Path) -> None:
    """Write weights, calibration data and a configuration."""
    torch.manual_seed(0)
    torch.save(model().state_dict(), folder / "net.pt")
    np.savez(folder / "inputs.npz", np.random.default_rng(0).normal(size=(16, 8)).astype("float32"))
    (folder / "pruning.yaml").write_text("pattern: 4x1\ntarget_sparsity: 0.75\nop_names: ['2']\n", "utf-8")


def test_losses_are_printed_and_written() -> None:
    options = ("--pattern", "1x1", "--pattern", "2:4", "--sparsity", "0.25", "--sparsity", "0.5")
    result = run(*SCAN, *options, "--output", "losses.json", "--report", "losses.html")
    assert result.exit_code == 0, result.stderr
    assert "1x1 25%  1x1 50%  2:4 25%  2:4 50%" in result.stdout
    assert "Calibration data: the inputs in inputs.npz." in result.stderr
    assert "Written to losses.json." in result.stderr
    page = Path("losses.html").read_text("utf-8")
    assert 'class="heat"' in page
    assert "cli_nets:build, sensitivity" in page
    net = model()
    net.load_state_dict(torch.load("net.pt"))
    data = [torch.from_numpy(np.load("inputs.npz")["arr_0"])]
    expected = secateur.sensitivity(net, data, patterns=["1x1", "2:4"], sparsities=[0.25, 0.5])
    written = SensitivityReport.read("losses.json")
    assert [layer.name for layer in written.layers] == ["0", "2"]
    for layer, other in zip(written.layers, expected.layers, strict=True):
        assert layer.sha256 == other.sha256
        assert [point.loss for point in layer.points] == pytest.approx([point.loss for point in other.points], rel=1e-5)


def test_a_target_is_distributed_by_the_written_losses() -> None:
    assert run(*SCAN, "--output", "losses.json").exit_code == 0
    options = ("--pattern", "1x1", "--target-sparsity", "0.6", "--allocation", "losses.json")
    plain = run_json("prune", *NET, *options, "--out", "plain")
    assert sum(layer["pruned_weights"] for layer in plain["layers"]) == round(0.6 * 384)
    data = ("--calibration", "inputs.npz", "--solver", "sparsegpt", "--report", "prune.html")
    solved = run_json("prune", *NET, *options, *data, "--out", "solved")
    assert [layer["pruned_units"] for layer in solved["layers"]] == [layer["pruned_units"] for layer in plain["layers"]]
    assert 'class="heat"' in Path("prune.html").read_text("utf-8")
    assert run("verify", "solved").exit_code == 0


def test_a_configuration_selects_layers_and_the_pattern() -> None:
    found = run_json(*SCAN, "--config", "pruning.yaml", "--metric", "layer", "--solver", "magnitude")
    assert [layer["name"] for layer in found["layers"]] == ["2"]
    assert {point["pattern"] for point in found["layers"][0]["points"]} == {"4x1"}
    assert (found["format_version"], found["solver"]) == (1, "magnitude")
    other = run_json(*SCAN, "--config", "pruning.yaml", "--pattern", "1x1", "--sparsity", "0.5")
    assert [point["pattern"] for point in other["layers"][0]["points"]] == ["1x1"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sensitivity", *NET), 1, "calibration must be a file of inputs"),
        ((*SCAN, "--metric", "accuracy"), 2, "accuracy"),
        ((*SCAN, "--sparsity", "0"), 1, "sparsities must be one or more different numbers in (0, 1]"),
        ((*SCAN, "--pattern", "heads"), 1, "'heads' couples layers"),
        ((*SCAN, "--output", "missing/losses.json"), 1, "cannot be written: there is no folder 'missing'"),
        ((*SCAN, "--output", "."), 2, "is a directory"),
        (("prune", *NET, "--out", "out", "--allocation", "missing.json"), 1, "missing.json"),
        (("prune", *NET, "--out", "out", "--allocation", "pruning.yaml"), 1, "is not valid JSON"),
        (("prune", *NET, "--out", "out", "--allocation", "sensible"), 1, "Unknown allocation 'sensible'"),
    ],
)
def test_errors_are_explained(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
    assert not Path("out").exists()


def test_losses_of_other_weights_are_refused(folder: Path) -> None:
    assert run(*SCAN, "--output", "losses.json").exit_code == 0
    torch.manual_seed(1)
    torch.save(model().state_dict(), folder / "net.pt")
    result = run(
        "prune", *NET, "--pattern", "1x1", "--target-sparsity", "0.5", "--out", "out", "--allocation", "losses.json"
    )
    assert result.exit_code == 1
    assert "is of a model with other weights in '0', '2'" in " ".join(result.stderr.split())
    assert json.loads(Path("losses.json").read_text("utf-8"))["format_version"] == 1
