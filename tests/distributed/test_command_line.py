"""Test ``secateur prune`` under torchrun: a rank that dies, and the run that resumes after it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli.kit import run
from coverage_of_processes import list_variables
from secateur.artifact import Artifact

NETWORK = """
import os
from pathlib import Path
import torch
from torch import nn

class Fragile(nn.Module):
    def forward(self, x):
        if Path("die").exists() and os.environ.get("RANK") == "1" and list(Path("out.part").glob("*.done.*")):
            os.kill(os.getpid(), 9)
        return torch.relu(x)

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), Fragile(), nn.Linear(16, 16), Fragile(), nn.Linear(16, 16), Fragile(), nn.Linear(16, 3)
    )
"""

COMMAND = ["prune", "fragile_nets:build", "--pattern", "2:4", "--solver", "sparsegpt", "--calibration", "inputs.npz"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fragile_nets.py").write_text(NETWORK, "utf-8")
    np.savez("inputs.npz", x=np.random.default_rng(0).standard_normal((96, 8), np.float32))
    return tmp_path


def start(*command: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = (*torchrun, "-m", "secateur", *command)
    variables = os.environ | list_variables()
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)


def read_bits(folder: str) -> dict[str, bytes]:
    artifact = Artifact(folder)
    return {name: artifact[name].bits.tobytes() for name in artifact}


def test_a_run_under_torchrun_that_lost_a_rank_resumes(folder: Path) -> None:
    (folder / "die").touch()
    lost = start(*COMMAND, "--out", "out")
    assert lost.returncode
    assert "Finished parts are in out.part. Run the same command again to resume." in lost.stderr
    assert not (folder / "out").exists()
    (folder / "die").unlink()
    resumed = start(*COMMAND, "--out", "out")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("Pruned 50.00% of the weights") == 1
    for line in ("Resuming the unfinished run in out.part.", "Calibration data: ", "Written to out."):
        assert resumed.stderr.count(line) == 1
    assert sorted(path.name for path in folder.glob("out*")) == ["out"]
    assert run(*COMMAND, "--out", "alone").exit_code == 0
    assert read_bits("out") == read_bits("alone")


@pytest.mark.parametrize("command", [["slim", "fragile_nets:build"], ["plan", "fragile_nets:build"]])
def test_other_commands_run_in_one_process(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run(*command)
    assert result.exit_code == 1
    assert f"secateur {command[0]} must run in one process, found 2 of torchrun" in result.stderr
