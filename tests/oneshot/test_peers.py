"""Test how ``benchmarks/oneshot.py --peers`` installs and runs other tools, with small programs in their place."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

PROGRAM = """
import json, os, sys
from safetensors.torch import load_file, save_file
folder, tool, method, pattern, _, threads = sys.argv[1:]
tokens = load_file(f"{folder}/tokens.safetensors")["input_ids"]
save_file({"weight": tokens.float() * 2}, f"{folder}/pruned.safetensors")
versions = {tool: method + pattern, "threads": threads + os.environ["OMP_NUM_THREADS"]}
with open(f"{folder}/result.json", "w") as file:
    json.dump({"cpu_seconds": 1.5, "seconds": 2.5, "versions": versions}, file)
"""
"""Stands for a tool: doubles the tokens, and returns its arguments as versions."""


class FakeModel:
    """Writes nothing, like a tokenizer or a model without files."""

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("_peers")


def test_a_tool_that_cannot_be_installed_says_what_is_missing(peers: Any, tmp_path: Path) -> None:
    missing = f"{tmp_path}/no-such-tool.whl"
    with pytest.raises(peers.PeerError, match=r"tool cannot be installed, it needs .*no-such-tool") as caught:
        peers.create_environment(tmp_path, "tool", [missing])
    assert len(str(caught.value).splitlines()) > 1, "the output of pip is missing"
    assert not (tmp_path / "tool" / "requirements.json").exists()


def test_only_changed_requirements_are_installed_again(
    peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    (tmp_path / "tool").mkdir()
    monkeypatch.setattr(peers, "_run", lambda command, _: commands.append(command))
    python = peers.create_environment(tmp_path, "tool", ["a==1"])
    assert [command[2] for command in commands] == ["venv", "pip"]
    assert commands[1][-1] == "a==1"
    assert str(python) in commands[1]
    assert peers.create_environment(tmp_path, "tool", ["a==1"]) == python
    assert len(commands) == 2
    peers.create_environment(tmp_path, "tool", ["a==2"])
    assert commands[3][-1] == "a==2"


def test_model_and_tokens_go_through_files(peers: Any, tmp_path: Path) -> None:
    runner, exchange, tokens = tmp_path / "runner.py", tmp_path / "exchange", torch.arange(6).reshape(2, 3)
    runner.write_text(PROGRAM, encoding="utf-8")
    peers.write_exchange(exchange, FakeModel(), FakeModel(), tokens)
    result, weights = peers.run_peer(Path(sys.executable), exchange, ("tool", "wanda", "2:4"), 3, runner)
    assert torch.equal(weights["weight"], tokens.float() * 2)
    assert (result.cpu_seconds, result.seconds) == (1.5, 2.5)
    assert result.versions == {"tool": "wanda2:4", "threads": "33"}

    runner.write_text("raise SystemExit('no such layer')", encoding="utf-8")
    with pytest.raises(peers.PeerError, match=r"(?s)tool fails with wanda at 2:4:.*no such layer"):
        peers.run_peer(Path(sys.executable), exchange, ("tool", "wanda", "2:4"), 1, runner)
    assert not (exchange / "result.json").exists(), "the result of the last run could be taken for that of this one"


def test_results_are_added_to_a_file(peers: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    peers.append_result(path, {"method": "wanda"})
    peers.append_result(path, {"method": "other"}, peers.PeerResult(cpu_seconds=1, seconds=1, versions={"tool": "2"}))
    assert json.loads(path.read_text("utf-8")) == [{"method": "wanda"}, {"method": "other", "versions": {"tool": "2"}}]


def test_tools_run_only_what_they_support(peers: Any) -> None:
    assert peers.PEERS["llm-compressor"].supports("wanda", "2:4")
    assert not peers.PEERS["llm-compressor"].supports("alps", "2:4")
    assert not peers.PEERS["modelopt"].supports("sparsegpt", "4:8")


def test_every_requirement_is_pinned(peers: Any) -> None:
    """Other requirements than `requests`, which ModelOpt imports without requiring it, have one version."""
    requirements = {name for peer in peers.PEERS.values() for name in peer.requirements}
    assert {name for name in requirements if "==" not in name} <= {"requests"}
