"""Tests of ``secateur search``."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import secateur
from cli.kit import model, run, run_json

pytest.importorskip("optuna")

METRICS = """
import torch

def size(model):
    print("measuring")
    return -sum(float(weight.detach().abs().sum()) for weight in model.parameters())

limit = 3
"""
NET = ("cli_nets:build", "--weights", "net.pt")
SEARCH = ("search", *NET, "--space", "space.yaml", "--objective", "metrics:size", "--sampler", "grid", "--minimize")


@pytest.fixture(autouse=True)
def _files(folder: Path) -> None:
    """Write weights, calibration data, an objective and a space."""
    torch.manual_seed(0)
    torch.save(model().state_dict(), folder / "net.pt")
    np.savez(folder / "inputs.npz", np.random.default_rng(0).normal(size=(16, 8)).astype("float32"))
    (folder / "metrics.py").write_text(METRICS, "utf-8")
    (folder / "space.yaml").write_text(
        "pattern: [1x1, '2:4']\nsparsity: {low: 0.25, high: 0.75, step: 0.25}\n", "utf-8"
    )


def test_trials_are_printed_and_the_best_configuration_is_written() -> None:
    options = ("--max-cost", "0.7", "--output", "best.yaml", "--storage", "search.log", "--report", "search.html")
    result = run(*SEARCH, *options)
    assert result.exit_code == 0, result.stderr
    assert "of 4 trials are on the front" in result.stdout
    assert "measuring" not in result.stdout
    assert "Written to best.yaml: trial" in result.stderr
    assert 'class="chart"' in Path("search.html").read_text("utf-8")
    config = secateur.PruningConfig.from_yaml(Path("best.yaml"))
    dense = sum(weight.numel() for weight in model().parameters())
    net = model()
    net.load_state_dict(torch.load("net.pt"))
    secateur.prune(net, config)
    assert sum(int(weight.count_nonzero()) for weight in net.parameters()) <= 0.7 * dense
    assert run("prune", *NET, "--config", "best.yaml", "--out", "pruned").exit_code == 0

    again = run_json(*SEARCH, "--storage", "search.log")
    assert [trial["seconds"] for trial in again["trials"]] == [
        trial["seconds"] for trial in run_json(*SEARCH, "--storage", "search.log")["trials"]
    ]
    assert again["direction"] == "minimize"


def test_methods_that_need_data_get_it() -> None:
    space = {"pattern": "2:4", "solver": ["wanda", "magnitude"], "groups": {"2": {"pattern": "4:8"}}}
    Path("space.json").write_text(json.dumps(space), "utf-8")
    Path("shared.yaml").write_text("excluded_op_names: ['0']\npattern: 4x1\ntarget_sparsity: 0.1\n", "utf-8")
    options = ("--space", "space.json", "--calibration", "inputs.npz", "--config", "shared.yaml", "--cost", "bytes")
    result = run(*SEARCH, *options, "--json")
    assert result.exit_code == 0, result.stderr
    assert "Calibration data: the inputs in inputs.npz." in result.stderr
    trials = json.loads(result.stdout)["trials"]
    assert {trial["configs"]["prune"]["solver"] for trial in trials} == {"wanda", "magnitude"}
    assert all(trial["configs"]["prune"]["config"]["excluded_op_names"] == ["0"] for trial in trials)
    assert all(trial["error"] > 0 for trial in trials)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--objective", "metrics"), "A function must be given as package.module:name, found 'metrics'"),
        (("--objective", "metrics:limit"), "'metrics:limit' must be a function, found int"),
        (("--objective", "metrics:sice"), "has no 'sice'. Did you mean 'size'?"),
        (("--max-cost", "0.5"), "--max-cost picks the trial that --output writes. Add --output."),
        (("--output", "missing/best.yaml"), "there is no folder 'missing'"),
        (("--output", "best.yaml", "--max-cost", "0.01"), "No trial has max_cost="),
    ],
)
def test_what_cannot_be_searched_is_an_error(options: tuple[str, ...], found: str) -> None:
    result = run(*SEARCH, *options)
    assert result.exit_code == 1
    assert found in " ".join(result.stderr.split())
    assert not Path("best.yaml").exists()
