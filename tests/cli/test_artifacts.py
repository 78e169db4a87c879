"""Tests of ``secateur verify``, ``inspect`` and ``convert``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateur
from cli.kit import model, run, run_json, write_llama
from secateur._packages import get_install_command
from secateur.artifact import inspect

PATTERN = "2:4"


def shard(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def flip(path: Path) -> None:
    """Change one bit of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture
def artifact(folder: Path) -> Path:
    """Save a pruned network as an artifact."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    secateur.save(net, folder / "pruned", report=secateur.prune(net, {"pattern": PATTERN}))
    return folder / "pruned"


@pytest.mark.usefixtures("artifact")
def test_verify_prints_a_summary() -> None:
    result = run("verify", "pruned")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "pruned: valid. 6 tensors read; patterns of weights: 2:4 in 2.\n"
    assert run("verify", "pruned", "--pattern", "2:4").exit_code == 0


@pytest.mark.usefixtures("artifact")
def test_verify_prints_the_report_as_json() -> None:
    assert run_json("verify", "pruned") == json.loads(json.dumps(secateur.verify("pruned").to_dict()))


@pytest.mark.usefixtures("artifact")
def test_verify_names_the_tensor_without_the_pattern() -> None:
    result = run("verify", "pruned", "--pattern", "1:4", "--json")
    assert result.exit_code == 1
    assert "pruned: 2 tensors failed verification:\n  0.weight: not '1:4'" in result.stderr
    assert set(json.loads(result.stdout)["problems"]) == {"0.weight", "2.weight"}


def test_verify_names_the_damaged_tensor(artifact: Path) -> None:
    flip(shard(artifact))
    result = run("verify", "pruned")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pruned: 1 tensor failed verification:" in result.stderr
    assert "is damaged" in result.stderr
    assert "Traceback" not in result.stderr


def test_verify_reads_files_of_other_tools(folder: Path) -> None:
    weight = torch.ones(8, 8)
    weight[:, ::2] = 0
    save_file({"fc.weight": weight}, folder / "other.safetensors")
    assert run("verify", "other.safetensors", "--pattern", "2:4").exit_code == 0
    assert run("verify", "other.safetensors", "--pattern", "channelx1").exit_code == 0
    assert "fc.weight: not '1:4'" in run("verify", "other.safetensors", "--pattern", "1:4").stderr


def truncate(folder: Path) -> None:
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:-8])


def break_manifest(folder: Path) -> None:
    (folder / "secateur.json").write_text("{", "utf-8")


@pytest.mark.parametrize("spoil", [truncate, break_manifest, lambda folder: shard(folder).unlink()])
@pytest.mark.parametrize("command", ["verify", "inspect", "convert", "bench"])
def test_broken_artifacts_print_one_line(artifact: Path, spoil: Callable[[Path], object], command: str) -> None:
    spoil(artifact)
    result = run(command, "pruned", *(["target"] if command == "convert" else []))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("pruned")
    assert result.stderr.count("\n") == 1
    assert not Path("target").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "."], "must be an artifact, a .safetensors file or a folder of such files"),
        (["verify", "cli_nets.py"], "must be an artifact, a .safetensors file or a folder of such files"),
        (["verify", "pruned", "--pattern", "2:x"], "Unknown pattern '2:x'. Did you mean '2:4'?"),
        (["inspect", "nowhere"], "'nowhere' is not a folder"),
        (["inspect", "nowhere.safetensors"], "nowhere.safetensors"),
        (["convert", "pruned", "."], "it is or contains the current folder"),
        (["convert", "pruned", "other"], "must be new, empty or an artifact"),
        (["bench", "."], "no config.json, so it is not a transformers folder, and no secateur.json, so it is not"),
        (["bench", "nowhere"], "'nowhere' is not a folder"),
    ],
)
@pytest.mark.usefixtures("artifact")
def test_errors_are_messages_with_code_1(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").touch()
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["verify"], ["verify", "nowhere"], ["inspect"], ["convert", "."], ["bench"]])
def test_wrong_usage_has_code_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.usefixtures("artifact")
def test_inspect_prints_the_table() -> None:
    result = run("inspect", "pruned")
    assert result.exit_code == 0, result.stderr
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines == str(inspect("pruned")).splitlines()


def test_inspect_reads_the_same_models_as_prune(folder: Path) -> None:
    net = model()
    secateur.prune(net, {"pattern": PATTERN})
    torch.save(net.state_dict(), "net.pt")
    save_file(net.state_dict(), "net.safetensors")
    for arguments in (["cli_nets:build", "--weights", "net.pt"], ["net.safetensors"]):
        rows = {row["name"]: row for row in run_json("inspect", *arguments)["tensors"]}
        assert rows["0.weight"]["zeros"] == rows["0.weight"]["shape"][0] * rows["0.weight"]["shape"][1] // 2
    assert run("inspect", "net.safetensors", "--weights", "net.pt").exit_code == 1
    assert (folder / "net.pt").is_file()


def test_inspect_reads_a_transformers_folder_and_a_keras_file(folder: Path) -> None:
    pytest.importorskip("transformers")
    keras = pytest.importorskip("keras")
    write_llama(folder / "llama")
    assert "model.layers.0.mlp.up_proj.weight" in {row["name"] for row in run_json("inspect", "llama")["tensors"]}
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="fc")]).save("net.keras")
    assert any("fc" in row["name"] for row in run_json("inspect", "net.keras")["tensors"])


@pytest.mark.usefixtures("artifact")
def test_inspect_draws_masks(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("inspect", "pruned", "--picture", "masks.png", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "Drew 2 masks in masks.png.\n"
    assert json.loads(result.stdout)["tensors"]
    assert (folder / "masks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["artifact", "file", "model"])
def test_masks_match_the_weights(artifact: Path, kind: str) -> None:
    from secateur.report import read_masks

    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    secateur.load(artifact, net)
    save_file(net.state_dict(), "net.safetensors")
    source: Any = {"artifact": artifact, "file": Path("net.safetensors"), "model": net}[kind]
    masks = list(read_masks(source, inspect(source).tensors))
    assert [(mask.name, mask.pattern) for mask in masks] == [("0", PATTERN), ("2", PATTERN)]
    assert np.array_equal(masks[0].keep, net[0].weight.detach().numpy() != 0)


def test_a_dense_model_has_no_picture(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("inspect", "cli_nets:build", "--picture", "masks.png")
    assert result.exit_code == 0
    assert "No picture drawn, because no weight is pruned." in result.stderr
    assert not (folder / "masks.png").exists()


@pytest.mark.usefixtures("artifact")
@pytest.mark.parametrize("picture", ["masks.txt", "no_such_folder/masks.png"])
def test_a_picture_that_cannot_be_written_is_an_error(picture: str) -> None:
    pytest.importorskip("matplotlib")
    result = run("inspect", "pruned", "--picture", picture)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"The picture '{picture}' cannot be written" in result.stderr


def test_a_picture_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = run("inspect", "cli_nets:build", "--picture", "masks.png")
    assert result.exit_code == 1
    assert result.stderr.startswith("This needs the package 'matplotlib'")
    assert get_install_command("plot") in result.stderr


def test_convert_round_trip(artifact: Path, folder: Path) -> None:
    result = run("convert", "pruned", "dense", "--dense")
    assert (result.exit_code, result.stderr) == (0, "")
    sizes = secateur.verify("pruned")
    told = f"Written to dense: {sizes.dense_bytes:,} of {sizes.dense_bytes:,} bytes (100.0%).\n"
    assert result.stdout == told
    assert (load_file(shard(folder / "dense"))["0.weight"] == 0).float().mean() == 0.5
    report = run_json("convert", "dense", "again")
    assert report["packed_bytes"] == secateur.verify(artifact).packed_bytes < report["dense_bytes"]
    assert run_json("convert", str(shard(folder / "dense")), "again")["packed_bytes"] < report["dense_bytes"]
