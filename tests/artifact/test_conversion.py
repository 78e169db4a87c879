"""What pruning says that it did travels with files that are converted."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur
from secateur.artifact import Artifact, convert
from secateur.errors import ArtifactError, StateError


def test_a_report_is_proved_and_kept(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3))
    report = secateur.prune(net, {"pattern": "4x1", "target_sparsity": 0.5})
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    convert(tmp_path / "net.safetensors", tmp_path / "packed", report=report)
    secateur.save(net, tmp_path / "saved", report=report)
    found, saved = (Artifact(tmp_path / name).manifest for name in ("packed", "saved"))
    assert found.tensors["0.weight"].pruned == saved.tensors["0.weight"].pruned is not None
    assert found.configs == saved.configs


def test_another_report_is_refused(tmp_path: Path) -> None:
    report = secateur.prune(nn.Linear(32, 64), {"pattern": "2:4"})
    save_file({"fc.weight": torch.ones(64, 32)}, tmp_path / "net.safetensors")
    with pytest.raises(StateError, match="The report belongs to another model"):
        convert(tmp_path / "net.safetensors", tmp_path / "packed", report=report)
    net = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 3))
    report = secateur.prune(net, {"pattern": "2:4"})
    save_file({"0.weight": torch.ones(64, 32)}, tmp_path / "dense.safetensors")
    with pytest.raises(ArtifactError, match="layer '0': was pruned to '2:4'"):
        convert(tmp_path / "dense.safetensors", tmp_path / "packed", report=report)
    assert not (tmp_path / "packed").exists()
