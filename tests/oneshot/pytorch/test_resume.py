"""Interrupted runs: the model is as it was before, and the same call goes on to the same bits."""

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
from oneshot.problems import Recording, batches, execute
from secateur.errors import CalibrationError, StateError
from secateur.solvers import SOLVERS, Problem, Solution, Solver
from tiny_models import bits, deep_mlp
from tiny_transformers import family, inputs_of

STAGES = 5
"""Parts of `deep_mlp` that are told of: its classifier and the activation before it are none."""

CONFIG = {"pattern": "2:4"}


class InterruptedRunError(Exception):
    """What the callback raises."""


def run(model: nn.Module, folder: Path | None = None, progress: Any = None, **options: Any) -> Any:
    given = execute(options.pop("given", batches()), folder=folder, progress=progress)
    config = options.pop("config", CONFIG)
    return secateur.prune(model, config, **given, **{"solver": "alps", **options})


def interrupted(model: nn.Module, folder: Path | None, at: int, **options: Any) -> None:
    with pytest.raises(InterruptedRunError):
        run(model, folder, Recording(InterruptedRunError, at), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """The bits of a run that nothing interrupted."""
    model = deep_mlp()
    told = Recording()
    run(model, progress=told)
    assert len(told.seen) == STAGES
    return bits(model)


@pytest.mark.parametrize("kind", [InterruptedRunError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("at", range(1, STAGES + 1))
def test_an_interruption_changes_nothing(at: int, kind: type[BaseException]) -> None:
    model = deep_mlp()
    before, ids = bits(model), [id(held) for held in model.parameters()]
    with pytest.raises(kind) as caught:
        run(model, progress=Recording(kind, at))
    assert bits(model) == before
    assert [id(held) for held in model.parameters()] == ids
    assert caught.value.__notes__ == ["The model is unchanged."]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_solver_that_fails_changes_nothing() -> None:
    class Failing(Solver):
        needs = "norms"
        solved = 0

        def solve(self, problem: Problem) -> Solution:
            self.solved += 1
            if self.solved == 3:
                raise InterruptedRunError
            return SOLVERS["wanda"]().solve(problem)

    model = family("llama").train()
    before = bits(model)
    with pytest.raises(InterruptedRunError):
        run(model, given=inputs_of("llama"), solver=Failing())
    assert bits(model) == before
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("at", range(1, STAGES + 1))
def test_the_same_call_goes_on(at: int, tmp_path: Path, whole: dict[str, bytes]) -> None:
    model = deep_mlp()
    before = bits(model)
    with pytest.raises(InterruptedRunError) as caught:
        run(model, tmp_path, Recording(InterruptedRunError, at))
    assert bits(model) == before
    done = [name for name in contents(tmp_path) if "done" in name]
    assert str(tmp_path) in caught.value.__notes__[0]
    assert f"{len(done)} finished part" in caught.value.__notes__[0]
    assert not [name for name in contents(tmp_path) if "dense" in name or "part" in name]
    again = deep_mlp()
    report = run(again, tmp_path)
    assert bits(again) == whole
    assert contents(tmp_path) == {}
    alone = run(deep_mlp())
    assert (report.layers, report.errors) == (alone.layers, alone.errors)


def test_the_interrupted_model_itself_goes_on(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Interrupted again and again, at every part."""
    model = deep_mlp()
    for at in range(1, STAGES + 1):
        interrupted(model, tmp_path, at)
    run(model, tmp_path)
    assert bits(model) == whole


def test_finished_parts_are_not_solved_again(tmp_path: Path) -> None:
    class Counting(Solver):
        needs = "norms"
        solved = 0

        def solve(self, problem: Problem) -> Solution:
            type(self).solved += 1
            return SOLVERS["wanda"]().solve(problem)

    interrupted(deep_mlp(), tmp_path, 3, solver=Counting())
    assert Counting.solved == 2
    run(deep_mlp(), tmp_path, solver=Counting())
    assert Counting.solved == 3


def test_a_language_model_goes_on(tmp_path: Path) -> None:
    models = [family("llama") for _ in range(3)]
    options: dict[str, Any] = {"given": inputs_of("llama", padded=True), "solver": "sparsegpt", "refine": "pcg"}
    run(models[0], **options)
    interrupted(models[1], tmp_path, 2, **options)
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


def killed(folder: Path, at: int) -> None:
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(at)], env=environment, check=False)
    assert done.returncode == 7


def test_a_killed_process_goes_on(tmp_path: Path, whole: dict[str, bytes]) -> None:
    killed(tmp_path, 3)
    assert {name.split(".")[1] for name in contents(tmp_path)} == {"dense", "done", "state"}
    model = deep_mlp()
    run(model, tmp_path)
    assert bits(model) == whole
    assert contents(tmp_path) == {}


def test_what_a_killed_process_left_is_not_put_into_another_model(tmp_path: Path) -> None:
    killed(tmp_path, 3)
    other = deep_mlp(seed=1)
    before = bits(other)
    with pytest.raises(StateError, match="contains an unfinished run of a model with other weights"):
        run(other, tmp_path)
    assert bits(other) == before
    model = deep_mlp()
    before = bits(model)
    interrupted(model, tmp_path, 1)
    assert bits(model) == before


def other_weights() -> nn.Sequential:
    return deep_mlp(seed=1)


def other_bias() -> nn.Sequential:
    """All that is pruned is the same."""
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
        (other_bias, {}, "of a model with other weights. Load the same dense model, or empty the folder"),
        (other_weights, {}, "of a model with other weights. Load the same dense model, or empty the folder"),
    ],
)
def test_another_run_is_refused(
    make: Callable[[], nn.Module], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    interrupted(deep_mlp(), tmp_path, 2)
    left = contents(tmp_path)
    model = make()
    before = bits(model)
    with pytest.raises(StateError, match=re.escape(message)):
        run(model, tmp_path, **options)
    assert bits(model) == before
    assert contents(tmp_path) == left


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced_by_tensors(path: Path) -> None:
    save_file({"0.weight": torch.zeros(32, 16)}, path)


def replaced_by_other_shapes(path: Path) -> None:
    save_file({"0.weight": torch.zeros(1)}, path, {"dense": "", "found": "{}"})


def flipped(path: Path) -> None:
    """One bit of a weight."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncated, emptied, replaced_by_tensors, replaced_by_other_shapes, flipped])
def test_damaged_parts_are_refused(damage: Callable[[Path], None], tmp_path: Path, whole: dict[str, bytes]) -> None:
    interrupted(deep_mlp(), tmp_path, 2)
    damage(tmp_path / "00000.done.safetensors")
    model = deep_mlp()
    before = bits(model)
    with pytest.raises(StateError, match=r"00000.done.safetensors cannot be read|an unfinished run of a model"):
        run(model, tmp_path)
    assert bits(model) == before
    (tmp_path / "00000.done.safetensors").unlink()
    run(model, tmp_path)
    assert bits(model) == whole


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"described": 1, "counts": 2}', "\xff"])
def test_a_damaged_description_is_refused(text: str, tmp_path: Path) -> None:
    interrupted(deep_mlp(), tmp_path, 2)
    (tmp_path / "run.state").write_bytes(text.encode("latin-1"))
    left = contents(tmp_path)
    model = deep_mlp()
    before = bits(model)
    with pytest.raises(StateError, match=r"run.state cannot be read .* Empty the folder to start over"):
        run(model, tmp_path)
    assert bits(model) == before
    assert contents(tmp_path) == left


def test_the_folder_of_a_stranger_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    left = contents(tmp_path)
    model = deep_mlp()
    before = bits(model)
    with pytest.raises(StateError, match=r"files that do not belong to a run, such as .model.safetensors.\. Choose an"):
        run(model, tmp_path)
    assert bits(model) == before
    assert contents(tmp_path) == left


def test_what_is_not_ones_own_stays_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    interrupted(deep_mlp(), tmp_path, 2)
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    run(deep_mlp(), tmp_path)
    assert contents(tmp_path).keys() == {"notes.txt", "model.safetensors"}


def test_the_folder_is_made_and_may_be_a_text(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "down"
    run(deep_mlp(), str(folder))  # type: ignore[arg-type]
    assert contents(folder) == {}


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file"):
        run(deep_mlp(), tmp_path / "file")


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(deep_mlp())
    interrupted(deep_mlp(), None, 2)
    given = execute(batches(), offload="disk")
    secateur.prune(deep_mlp(), CONFIG, **given, solver="wanda")
    broken = execute([batch * float("inf") for batch in batches()], offload="disk")
    with pytest.raises(CalibrationError, match="must be finite"):
        secateur.prune(deep_mlp(), CONFIG, **broken, solver="wanda")
    assert contents(tmp_path) == {}
