"""`verify(pattern=...)`: which layers must have the pattern, and which states of a layer pass."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.artifact import Artifact, convert, examine
from secateur.cli import app
from secateur.errors import ArtifactError
from secateur.results import PruningReport


def prune_unevenly(pattern: str, target: float | None = None) -> tuple[nn.Module, PruningReport]:
    """Prune a model whose first layer is so large that a global ranking leaves it dense."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight.mul_(1000)
        model[2].weight[0, 0] = 0.0  # by chance
    return model, secateur.prune(model, {"pattern": pattern, "target_sparsity": target, "pruning_scope": "global"})


@pytest.mark.parametrize("pattern", ["4x1", "1x1", "1xchannel"])
def test_a_layer_that_a_global_ranking_left_dense_passes(tmp_path: Path, pattern: str) -> None:
    model, report = prune_unevenly(pattern, 0.3)
    assert [layer.pruned_units > 0 for layer in report.layers] == [False, True]
    secateur.save(model, tmp_path / "saved", report=report)
    assert secateur.verify(tmp_path / "saved", pattern=pattern).problems == {}
    convert(tmp_path / "saved", tmp_path / "dense", dense=True)
    assert secateur.verify(tmp_path / "dense", pattern=pattern).problems == {}
    with pytest.raises(ArtifactError, match=r"0\.weight: not '8x1': it has no zeros"):
        secateur.verify(tmp_path / "saved", pattern="8x1")


def test_the_command_line_tells_dense_layers_from_pruned_ones(tmp_path: Path) -> None:
    model, report = prune_unevenly("4x1", 0.3)
    secateur.save(model, tmp_path / "saved", report=report)
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "saved"), "--pattern", "4x1"])
    assert result.exit_code == 0
    assert result.stdout.replace("\n", " ").strip().endswith("weights: 4x1 in 1; left dense by the run: 1.")


def test_a_layer_that_the_run_left_out_fails_the_pattern(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    for config in ({"excluded_op_names": ["0"]}, {"layers": {"0": None}}, {"op_names": ["2"]}):
        pruned = copy.deepcopy(model)
        report = secateur.prune(pruned, {"pattern": "2:4", **config})
        secateur.save(pruned, tmp_path / "saved", report=report)
        assert examine(tmp_path / "saved", pattern="2:4").problems == {"0.weight": "not '2:4': it has no zeros"}


def test_a_run_that_pruned_nothing_fails_the_pattern(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    report = secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.0})
    secateur.save(model, tmp_path / "saved", report=report)
    assert examine(tmp_path / "saved", pattern="4x1").problems == {"0.weight": "not '4x1': it has no zeros"}


def test_partly_pruned_groups_fail_the_pattern(tmp_path: Path) -> None:
    model, report = prune_unevenly("2:4", 0.2)
    secateur.save(model, tmp_path / "saved", report=report)
    problems = examine(tmp_path / "saved", pattern="2:4").problems
    assert list(problems) == ["2.weight"]
    assert "groups of 4 weights keep more than 2" in problems["2.weight"]


@pytest.mark.parametrize("pattern", ["4x1", "2:4", "1x1", "1xchannel", "16x1"])
def test_a_lock_states_the_pattern_of_the_zeros_that_it_kept(tmp_path: Path, pattern: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    before = secateur.prune(model, {"pattern": pattern, "target_sparsity": 0.5}).layers[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = secateur.prepare(model, {"kind": "pattern_lock", "op_names": ["0"]}, optimizer)
    model(torch.randn(8, 32)).sum().backward()
    optimizer.step()
    report = pruner.finalize()
    after = report.layers[0]
    assert (after.pattern, after.units, after.pruned_units) == (pattern, before.units, before.pruned_units)
    assert "Units differ in size" not in str(report)
    secateur.save(model, tmp_path / "saved", report=report)
    assert Artifact(tmp_path / "saved").entry("0.weight").pattern == pattern
    assert secateur.verify(tmp_path / "saved", pattern=pattern).problems == {}
