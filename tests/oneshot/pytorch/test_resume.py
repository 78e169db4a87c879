"""Test interrupted runs: the model is unchanged, and the same call resumes and ends with identical weights."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur
from oneshot.problems import ProgressRecorder, batches, execute
from secateur.errors import CalibrationError, StateError
from secateur.solvers import SOLVERS, Problem, Solution, Solver
from tiny_models import bits, deep_mlp
from tiny_transformers import family, inputs_of

STAGES = 5
"""Number of progress reports for `deep_mlp`; its classifier and the activation before it have none."""

CONFIG = {"pattern": "2:4"}


class InterruptedRunError(Exception):
    """Raised by the progress callback."""


def run(model: nn.Module, folder: Path | None = None, progress: Any = None, **options: Any) -> Any:
    given = execute(options.pop("given", batches()), folder=folder, progress=progress)
    config = options.pop("config", CONFIG)
    return secateur.prune(model, config, **given, **{"solver": "alps", **options})


def interrupt(model: nn.Module, folder: Path | None, at: int, **options: Any) -> None:
    with pytest.raises(InterruptedRunError):
        run(model, folder, ProgressRecorder(InterruptedRunError, at), **options)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_refused(folder: Path, message: str) -> None:
    """Check that a run in a folder is refused, and that model and folder stay as they are."""
    model, files = deep_mlp(), read_files(folder)
    before = bits(model)
    with pytest.raises(StateError, match=message):
        run(model, folder)
    assert bits(model) == before
    assert read_files(folder) == files


@pytest.fixture(scope="module")
def expected() -> dict[str, bytes]:
    """The weights after an uninterrupted run."""
    model = deep_mlp()
    progress = ProgressRecorder()
    run(model, progress=progress)
    assert len(progress.steps) == STAGES
    return bits(model)


@pytest.mark.parametrize("kind", [InterruptedRunError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("at", range(1, STAGES + 1))
def test_an_interruption_leaves_the_model_unchanged(at: int, kind: type[BaseException]) -> None:
    model = deep_mlp()
    before, ids = bits(model), [id(parameter) for parameter in model.parameters()]
    with pytest.raises(kind) as caught:
        run(model, progress=ProgressRecorder(kind, at))
    assert bits(model) == before
    assert [id(parameter) for parameter in model.parameters()] == ids
    assert caught.value.__notes__ == ["The model is unchanged."]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_failing_solver_leaves_the_model_unchanged() -> None:
    class Failing(Solver):
        needs = "norms"
        calls = 0

        def solve(self, problem: Problem) -> Solution:
            self.calls += 1
            if self.calls == 3:
                raise InterruptedRunError
            return SOLVERS["wanda"]().solve(problem)

    model = family("llama").train()
    before = bits(model)
    with pytest.raises(InterruptedRunError):
        run(model, given=inputs_of("llama"), solver=Failing())
    assert bits(model) == before
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("at", range(1, STAGES + 1))
def test_the_same_call_resumes(at: int, tmp_path: Path, expected: dict[str, bytes]) -> None:
    model = deep_mlp()
    before = bits(model)
    with pytest.raises(InterruptedRunError) as caught:
        run(model, tmp_path, ProgressRecorder(InterruptedRunError, at))
    assert bits(model) == before
    done = [name for name in read_files(tmp_path) if "done" in name]
    assert str(tmp_path) in caught.value.__notes__[0]
    assert f"{len(done)} finished part" in caught.value.__notes__[0]
    assert not [name for name in read_files(tmp_path) if "dense" in name or "part" in name]
    resumed = deep_mlp()
    report = run(resumed, tmp_path)
    assert bits(resumed) == expected
    assert read_files(tmp_path) == {}
    uninterrupted = run(deep_mlp())
    assert (report.layers, report.errors) == (uninterrupted.layers, uninterrupted.errors)


def test_the_interrupted_model_can_resume(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """The run is interrupted at every part in turn."""
    model = deep_mlp()
    for at in range(1, STAGES + 1):
        interrupt(model, tmp_path, at)
    run(model, tmp_path)
    assert bits(model) == expected


def test_finished_parts_are_not_solved_again(tmp_path: Path) -> None:
    class Counting(Solver):
        needs = "norms"
        calls = 0

        def solve(self, problem: Problem) -> Solution:
            type(self).calls += 1
            return SOLVERS["wanda"]().solve(problem)

    interrupt(deep_mlp(), tmp_path, 3, solver=Counting())
    assert Counting.calls == 2
    run(deep_mlp(), tmp_path, solver=Counting())
    assert Counting.calls == 3


def test_a_language_model_resumes(tmp_path: Path) -> None:
    models = [family("llama") for _ in range(3)]
    options: dict[str, Any] = {"given": inputs_of("llama", padded=True), "solver": "sparsegpt", "refine": "pcg"}
    run(models[0], **options)
    interrupt(models[1], tmp_path, 2, **options)
    run(models[2], tmp_path, **options)
    assert bits(models[0]) == bits(models[2])
    assert bits(models[1]) == bits(family("llama"))


KILLED = """
import os, sys
from oneshot.problems import batches
from tiny_models import deep_mlp
import secateur
from secateur.oneshot import Execution

def progress(step):
    if step.done == int(sys.argv[2]):
        os._exit(7)

execution = Execution(folder=sys.argv[1], progress=progress)
secateur.prune(deep_mlp(), {"pattern": "2:4"}, calibration=batches(), execution=execution, solver="alps")
"""


def run_killed_process(folder: Path, at: int) -> None:
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(at)], env=environment, check=False)
    assert done.returncode == 7


def test_a_killed_process_can_be_resumed(tmp_path: Path, expected: dict[str, bytes]) -> None:
    run_killed_process(tmp_path, 3)
    assert {name.split(".")[1] for name in read_files(tmp_path)} == {"dense", "done", "state"}
    model = deep_mlp()
    run(model, tmp_path)
    assert bits(model) == expected
    assert read_files(tmp_path) == {}


def test_files_of_a_killed_process_are_not_loaded_into_another_model(tmp_path: Path) -> None:
    run_killed_process(tmp_path, 3)
    other = deep_mlp(seed=1)
    before = bits(other)
    with pytest.raises(StateError, match="contains an unfinished run of a model with other weights"):
        run(other, tmp_path)
    assert bits(other) == before
    model = deep_mlp()
    before = bits(model)
    interrupt(model, tmp_path, 1)
    assert bits(model) == before


def build_with_other_weights() -> nn.Sequential:
    return deep_mlp(seed=1)


def build_with_other_bias() -> nn.Sequential:
    """Build a model whose pruned weights are the same."""
    model = deep_mlp()
    with torch.no_grad():
        model[0].bias.add_(1)
    return model


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (deep_mlp, {"config": {"pattern": "1:4"}}, "different unfinished run (it differs in config)"),
        (deep_mlp, {"solver": "wanda"}, "different unfinished run (it differs in recipe)"),
        (deep_mlp, {"refine": "pcg"}, "different unfinished run (it differs in recipe)"),
        (deep_mlp, {"given": batches(2)}, "different unfinished run (it differs in data)"),
        (deep_mlp, {"given": [2 * batch for batch in batches()]}, "different unfinished run (it differs in data)"),
        (lambda: deep_mlp()[:3], {}, "different unfinished run (it differs in layers)"),
        (build_with_other_bias, {}, "of a model with other weights. Load the same dense model, or empty the folder"),
        (build_with_other_weights, {}, "of a model with other weights. Load the same dense model, or empty the folder"),
    ],
)
def test_another_run_is_refused(
    make: Callable[[], nn.Module], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    interrupt(deep_mlp(), tmp_path, 2)
    before_files = read_files(tmp_path)
    model = make()
    before = bits(model)
    with pytest.raises(StateError, match=re.escape(message)):
        run(model, tmp_path, **options)
    assert bits(model) == before
    assert read_files(tmp_path) == before_files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_tensors(path: Path) -> None:
    save_file({"0.weight": torch.zeros(32, 16)}, path)


def replace_shapes(path: Path) -> None:
    save_file({"0.weight": torch.zeros(1)}, path, {"dense": "", "found": "{}"})


def flip_bit(path: Path) -> None:
    """Flip one bit of a weight."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, empty, replace_tensors, replace_shapes, flip_bit])
def test_damaged_parts_are_refused(damage: Callable[[Path], None], tmp_path: Path, expected: dict[str, bytes]) -> None:
    interrupt(deep_mlp(), tmp_path, 2)
    damage(tmp_path / "00000.done.safetensors")
    model = deep_mlp()
    before = bits(model)
    with pytest.raises(StateError, match=r"00000.done.safetensors cannot be read|an unfinished run of a model"):
        run(model, tmp_path)
    assert bits(model) == before
    (tmp_path / "00000.done.safetensors").unlink()
    run(model, tmp_path)
    assert bits(model) == expected


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"described": 1, "counts": 2}', "\xff"])
def test_a_damaged_description_is_refused(text: str, tmp_path: Path) -> None:
    interrupt(deep_mlp(), tmp_path, 2)
    (tmp_path / "run.state").write_bytes(text.encode("latin-1"))
    check_refused(tmp_path, r"run.state cannot be read .* Empty the folder to start over")


def test_a_folder_with_unrelated_files_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    check_refused(tmp_path, r"files that do not belong to a run, such as .model.safetensors.\. Choose an")


def test_unrelated_files_stay_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    interrupt(deep_mlp(), tmp_path, 2)
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    run(deep_mlp(), tmp_path)
    assert read_files(tmp_path).keys() == {"notes.txt", "model.safetensors"}


def test_the_folder_is_created_and_can_be_a_string(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "down"
    run(deep_mlp(), str(folder))  # type: ignore[arg-type]
    assert read_files(folder) == {}


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file"):
        run(deep_mlp(), tmp_path / "file")


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(deep_mlp())
    interrupt(deep_mlp(), None, 2)
    given = execute(batches(), offload="disk")
    secateur.prune(deep_mlp(), CONFIG, **given, solver="wanda")
    broken = execute([batch * float("inf") for batch in batches()], offload="disk")
    with pytest.raises(CalibrationError, match="must be finite"):
        secateur.prune(deep_mlp(), CONFIG, **broken, solver="wanda")
    assert read_files(tmp_path) == {}
