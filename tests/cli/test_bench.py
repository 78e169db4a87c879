"""Tests of ``secateur bench``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from cli.kit import model, run, run_json, write_llama
from secateur.cli.benchmark import WITHOUT_RUNTIME, measure_medians
from secateur.models.trials import make_trial


def names(report: dict[str, list[dict[str, str]]]) -> list[str]:
    return [measure["name"] for measure in report["measures"]]


@pytest.fixture
def net(folder: Path) -> nn.Sequential:
    """Create a pruned network and its artifact ``pruned``."""
    made = model()
    secateur.save(made, folder / "pruned", report=secateur.prune(made, {"pattern": "2:4"}))
    return made


def test_a_transformers_model(folder: Path) -> None:
    pytest.importorskip("transformers")
    llama = write_llama(folder / "llama")
    secateur.save(llama, folder / "pruned", report=secateur.prune(llama, {"pattern": "2:4"}))
    report = run_json("bench", "pruned", "--batch", "2", "--length", "16", "--rounds", "1")
    forward = "forward pass, 2×16"
    assert names(report) == ["tensors on disk", "load the model", forward, f"{forward}, runtime"]
    assert {layer["pattern"] for layer in report["runtime"]["layers"]} == {"2:4", None}
    bfloat16, compiled = report["runtime"]["baselines"][:2]
    assert (bfloat16["name"], bfloat16["error"] > 0, bfloat16["seconds"] > 0) == ("dense bfloat16", True, True)
    assert compiled["name"] == "torch.compile float32"
    assert "modules would take minutes" in compiled["reason"]  # the limit is 0 in tests
    disk = report["measures"][0]
    assert disk["dense"] > disk["pruned"] == next((folder / "pruned").glob("*.safetensors")).stat().st_size
    assert WITHOUT_RUNTIME in report["notes"]
    assert all(one["ratio"] == pytest.approx(one["dense"] / one["pruned"]) for one in report["measures"])


def test_a_model_that_is_not_an_artifact(folder: Path) -> None:
    pytest.importorskip("transformers")
    llama = write_llama(folder / "llama")
    secateur.prune(llama, {"pattern": "2:4"})
    llama.save_pretrained("pruned")
    report = run_json("bench", "pruned", "--length", "16", "--rounds", "1")
    assert report["path"] == "pruned"
    assert names(report) == ["forward pass, 1×16", "forward pass, 1×16, runtime"]
    assert {layer["pattern"] for layer in report["runtime"]["layers"]} == {"2:4", None}
    assert "--model is for artifacts, and 'pruned' is not one" in run("bench", "pruned", "--model", "a:b").stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("image_size", "shape"), [(None, "2×3×224×224"), (32, "2×3×32×32")])
def test_an_image_model(image_size: int | None, shape: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if image_size is None:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        net = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        net = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=image_size, **sizes))
    secateur.save(net, "pruned", report=secateur.prune(net, {"pattern": "4x1"}))
    forward = f"forward pass, {shape}"
    assert names(run_json("bench", "pruned", "--batch", "2", "--rounds", "1"))[2:] == [forward, f"{forward}, runtime"]


@pytest.mark.usefixtures("net")
def test_a_model_from_code_with_inputs() -> None:
    np.savez("inputs.npz", np.ones((5, 8), dtype=np.float32))
    given = ("--model", "cli_nets:build", "--inputs", "inputs.npz", "--batch", "3", "--rounds", "1")
    assert names(run_json("bench", "pruned", *given))[2] == "forward pass, 3×8"


GIVEN = ("bench", "pruned", "--model", "cli_nets:build", "--inputs", "inputs.npz", "--rounds", "1", "--device")


@pytest.fixture
def inputs(folder: Path) -> None:
    np.savez(folder / "inputs.npz", np.ones((5, 8), dtype=np.float32))


@pytest.mark.usefixtures("net", "inputs")
def test_a_device_is_chosen() -> None:
    assert names(run_json(*GIVEN, "cpu"))[2] == "forward pass, 1×8"
    result = run(*GIVEN, "nonsense")
    assert result.exit_code == 1
    assert "device must be one that torch can use here, such as 'cpu' or 'cuda', found 'nonsense'" in result.stderr


@pytest.mark.gpu
@pytest.mark.usefixtures("net", "inputs")
def test_a_gpu_is_named() -> None:
    report = run_json(*GIVEN, "cuda")
    assert names(report)[3] == f"forward pass, 1×8 on {torch.cuda.get_device_name()}, runtime"
    assert report["runtime"]["device"] == "cuda:0"


@pytest.mark.usefixtures("net")
def test_notes_say_what_was_not_timed() -> None:
    report = run_json("bench", "pruned", "--rounds", "1")
    assert names(report) == ["tensors on disk"]
    assert "does not say how to build the model. Pass --model package.module:name." in report["notes"][0]
    report = run_json("bench", "pruned", "--rounds", "1", "--model", "cli_nets:build")
    assert names(report) == ["tensors on disk", "load the model"]
    assert (
        "The forward pass was not timed: a model that takes neither text nor images needs a file" in report["notes"][1]
    )
    np.savez("inputs.npz", np.ones((5, 9), dtype=np.float32))
    report = run_json("bench", "pruned", "--rounds", "1", "--model", "cli_nets:build", "--inputs", "inputs.npz")
    assert "The forward pass was not timed: The model fails on the inputs: RuntimeError: mat1" in report["notes"][1]


@pytest.mark.usefixtures("net")
def test_output_is_a_table() -> None:
    result = run("bench", "pruned", "--rounds", "1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == "Dense and pruned: pruned"
    assert "Medians of 1 round, dense and pruned in turn" in result.stdout


def test_a_keras_model(folder: Path) -> None:
    keras = pytest.importorskip("keras")
    made = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="fc"), keras.layers.Dense(3)])
    secateur.save(made, folder / "pruned", report=secateur.prune(made, {"pattern": "2:4"}))
    assert names(run_json("bench", "pruned", "--rounds", "1"))[2] == "forward pass, 1×8"
    np.savez("inputs.npz", np.ones((5, 8), dtype=np.float32))
    assert names(run_json("bench", "pruned", "--rounds", "1", "--inputs", "inputs.npz", "--batch", "3"))[2].endswith(
        "3×8"
    )
    result = run("bench", "pruned", "--device", "cpu")
    assert result.exit_code == 1
    assert "device is for torch models only" in result.stderr
    (folder / "bad.npz").write_bytes(b"no zip")
    notes = run_json("bench", "pruned", "--rounds", "1", "--inputs", "bad.npz")["notes"]
    assert any("'bad.npz' cannot be read as an .npz file" in note for note in notes)


def test_a_keras_model_of_any_size(folder: Path) -> None:
    keras = pytest.importorskip("keras")
    inputs = keras.Input((None, 8))
    made = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(16)(inputs)))
    secateur.save(made, folder / "pruned", report=secateur.prune(made, {"pattern": "2:4"}))
    notes = run_json("bench", "pruned", "--rounds", "1")["notes"]
    assert any("a model that takes inputs of any shape needs a file of inputs" in note for note in notes)


def test_the_dense_copy_has_no_zeros_and_the_model_keeps_its_zeros(net: nn.Sequential) -> None:
    before = net[0].weight.clone()
    np.savez("inputs.npz", np.ones((5, 8), dtype=np.float32))
    np.savez("named.npz", input=np.ones((3, 8), np.float32))
    named = make_trial(net, Path("named.npz"), 2, 1)
    assert named.inputs == "2×8"
    named.pruned()
    made = make_trial(net, Path("inputs.npz"), 2, 1)
    made.dense()
    made.pruned()
    twin = made.dense.args[0]  # type: ignore[attr-defined]
    assert (twin[0].weight != 0).all()
    kept = before != 0
    assert torch.equal(twin[0].weight[kept], before[kept])
    assert torch.equal(net[0].weight, before)


def test_calls_are_timed_in_turn() -> None:
    told: list[str] = []
    found = measure_medians({"one": lambda: told.append("1"), "two": lambda: told.append("2")}, rounds=3)
    assert told == ["1", "2"] * 4  # the first call is a warm-up
    assert found.keys() == {"one", "two"}


@pytest.mark.usefixtures("net")
def test_a_model_that_does_not_fit_is_an_error() -> None:
    result = run("bench", "pruned", "--model", "cli_nets:broken")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr


# two models


def test_a_dense_and_a_slim_transformers_model(folder: Path) -> None:
    pytest.importorskip("transformers")
    llama = write_llama(folder / "llama")
    given = ("--pattern", "channels", "--target-sparsity", "0.5", "--out", "slim")
    slim = run_json("slim", "llama", *given)
    report = run_json("bench", "llama", "slim", "--length", "16", "--rounds", "1")
    assert names(report) == ["weights", "forward pass, 1×16"]
    weights = report["measures"][0]
    assert (weights["dense"], weights["pruned"]) == (slim["bytes_before"], slim["bytes"])
    assert weights["dense"] == sum(weight.numel() * 4 for weight in llama.parameters())
    assert (report["path"], report["slim"], report["runtime"], report["notes"]) == ("llama", "slim", None, [])
    result = run("bench", "llama", "slim", "--length", "16", "--rounds", "1")
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "Dense and slim: llama and slim"
    assert lines[2].split() == ["measure", "dense", "slim", "dense", "÷", "slim"]
    assert "Medians of 1 round, dense and slim in turn" in result.stdout


@pytest.mark.usefixtures("inputs")
def test_a_slim_artifact_that_code_builds(folder: Path) -> None:
    made = model()
    secateur.prune(made, {"pattern": "channels", "target_sparsity": 0.5}, example_inputs=torch.randn(2, 8))
    secateur.slim(made, example_inputs=torch.randn(2, 8))
    secateur.save(made, folder / "slim")
    given = ("bench", "cli_nets:build", "slim", "--inputs", "inputs.npz", "--rounds", "1")
    report = run_json(*given, "--model", "cli_nets:build")
    assert names(report) == ["weights", "forward pass, 1×8"]
    assert report["measures"][0]["pruned"] == 4 * ((8 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 3)
    result = run(*given)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Pass the model: secateur.load(path, model)" in result.stderr


def test_two_models_must_fit_together(folder: Path) -> None:
    keras = pytest.importorskip("keras")
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)]).save(folder / "net.keras")
    result = run("bench", "cli_nets:build", "net.keras")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Both models must be of the same framework, found pytorch for 'cli_nets:build' and keras" in result.stderr
    result = run("bench", "cli_nets:build", "cli_nets:build", "--model", "cli_nets:build")
    assert "--model is for artifacts, and neither 'cli_nets:build' nor 'cli_nets:build' is one." in result.stderr


def test_two_keras_models(folder: Path) -> None:
    keras = pytest.importorskip("keras")
    for name, units in (("dense.keras", 16), ("slim.keras", 8)):
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(units), keras.layers.Dense(3)]).save(folder / name)
    report = run_json("bench", "dense.keras", "slim.keras", "--rounds", "1")
    assert names(report) == ["weights", "forward pass, 1×8"]
    assert report["measures"][0]["dense"] == 4 * (9 * 16 + 17 * 3)


@pytest.mark.usefixtures("inputs")
def test_a_dense_model_that_does_not_accept_the_inputs(folder: Path) -> None:
    (folder / "wide_nets.py").write_text("from torch import nn\n\nwide = nn.Linear(9, 3)\n", "utf-8")
    report = run_json("bench", "wide_nets:wide", "cli_nets:build", "--inputs", "inputs.npz", "--rounds", "1")
    assert names(report) == ["weights"]
    assert "The forward pass was not timed: The model fails on the inputs: RuntimeError: mat1" in report["notes"][0]
