"""Test that the model is unchanged after any failure, or that the error names the files with its dense weights."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import secateur
from fuzz.interrupts import count_lines, interrupt_at
from oneshot.problems import ProgressRecorder, batches, execute
from secateur.criteria import BaseCriterion, register_criterion
from secateur.errors import ConfigError, InsufficientMemoryError, StateError, StorageError
from secateur.oneshot import Execution
from secateur.oneshot.pytorch import backup, tensor_files
from secateur.solvers import Problem, Solution, Wanda
from tiny_models import bits, deep_mlp
from tiny_transformers import family, inputs_of

CONFIG = {"pattern": "2:4"}


def prune(model: nn.Module, folder: Path | None = None, progress: Any = None, **options: Any) -> Any:
    given = execute(batches(), folder=folder, progress=progress, keep_parts=options.pop("keep_parts", False))
    return secateur.prune(model, CONFIG, **given, **{"solver": "wanda", **options})


# Memory


LIMITED = """
import resource, sys, torch, secateur
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1024, 1024)

    def forward(self, x):
        return x + self.layer(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(1024, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)

def limit(step):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20), resource.RLIM_INFINITY))

model = Net()
before = [parameter.detach().clone() for parameter in model.parameters()]
data, execution = [torch.randn(8, 1024)], secateur.Execution(progress=limit)
try:
    secateur.prune(model, {"pattern": "2:4"}, calibration=data, execution=execution, solver="wanda")
except secateur.errors.InsufficientMemoryError as error:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert error.__notes__ == ["The model is unchanged."], error.__notes__
    assert all(map(torch.equal, before, model.parameters()))
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory limits and /proc")
def test_a_model_is_restored_without_free_memory() -> None:
    process = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert process.returncode == 7, process.stderr


OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
@pytest.mark.parametrize("where", ["solver", "model"])
def test_running_out_of_memory(error: Exception, where: str) -> None:
    def fail(*_: Any) -> Any:
        raise error

    class Failing(Wanda):
        def solve(self, problem: Problem) -> Solution:
            return fail(problem)

    model = deep_mlp()
    if where == "model":
        model[4].register_forward_hook(fail)
    before = bits(model)
    with pytest.raises(InsufficientMemoryError, match="not enough memory") as caught:
        prune(model, solver=Failing() if where == "solver" else "wanda")
    assert caught.value.__cause__ is error
    assert bits(model) == before


@pytest.mark.usefixtures("registries_restored")
@pytest.mark.parametrize("is_calibrated", [False, True])
def test_running_out_of_memory_for_scores_and_batches(*, is_calibrated: bool) -> None:
    @register_criterion("huge")
    class Huge(BaseCriterion):
        needs_gradient = False

        def score(self, weight: Any, gradient: Any) -> Any:  # noqa: ARG002
            raise MemoryError

    def read() -> Iterator[torch.Tensor]:
        yield batches()[0]
        raise MemoryError

    model = deep_mlp()
    before = bits(model)
    with pytest.raises(InsufficientMemoryError, match=r"not enough memory to prune the model \(MemoryError\)"):
        secateur.prune(model, {**CONFIG, "criterion": "huge"}, calibration=read() if is_calibrated else None)
    assert bits(model) == before


# Restoring that fails


@pytest.mark.parametrize("is_resumable", [False, True])
def test_dense_weights_that_cannot_be_restored_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_resumable: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    model, folder = deep_mlp(), tmp_path / "run" if is_resumable else None
    before = bits(model)
    with monkeypatch.context() as patched:
        patched.setattr(backup, "_read_into", fail)
        with pytest.raises(
            StateError, match=r"partly restored, because .*Input/output error.* 2 files named"
        ) as caught:
            prune(model, folder, ProgressRecorder(KeyboardInterrupt, 3))
    assert bits(model) != before
    files = sorted(tmp_path.rglob("rescued-*.safetensors"), reverse=True)
    assert str(files[0].parent) in str(caught.value)
    if folder is not None:  # another run does not remove the files
        prune(deep_mlp(), folder)
    for file in files:
        model.load_state_dict(load_file(file), strict=False)
    assert bits(model) == before


def test_parameters_of_every_memory_layout_are_restored() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 2))
    model[0].to(memory_format=torch.channels_last)
    model[3].weight = nn.Parameter(torch.randn(8, 8).T)
    model[4].half().float()
    before = bits(model)
    given = execute([torch.randn(16, 4, 3, 3)], progress=ProgressRecorder(KeyboardInterrupt, 1))
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(model, CONFIG, **given, solver="sparsegpt")
    assert bits(model) == before


# Disks


FULL = [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(28, "No space left on device")]


@pytest.mark.parametrize("error", FULL, ids=repr)
@pytest.mark.parametrize("at", range(1, 7))
def test_a_full_disk(error: Exception, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, model, calls = deep_mlp(), deep_mlp(), []
    prune(expected)
    before = bits(model)

    def save(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == at:
            raise error
        original(*arguments)

    original = tensor_files.save_file
    with monkeypatch.context() as patched:
        patched.setattr(tensor_files, "save_file", save)
        with pytest.raises(StorageError, match=r"cannot be written .*No space.*Free disk space, or choose another"):
            prune(model, tmp_path)
    assert bits(model) == before
    assert not list(tmp_path.glob("*.part"))
    prune(model, tmp_path)
    assert bits(model) == bits(expected)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    other = deep_mlp()
    before = bits(other)

    def progress(_: Any) -> None:
        with pytest.raises(StateError, match="Another run is using the folder"):
            prune(other, tmp_path)

    model, expected = deep_mlp(), deep_mlp()
    prune(model, tmp_path, progress)
    prune(expected)
    assert bits(model) == bits(expected)
    assert bits(other) == before
    assert not list(tmp_path.iterdir())


def test_finished_parts_are_kept_with_keep_parts(tmp_path: Path) -> None:
    calls: list[str] = []

    class CountedWanda(Wanda):
        def solve(self, problem: Problem) -> Solution:
            calls.append("solve")
            return super().solve(problem)

    class CountedDistill(secateur.refiners.Distill):
        def refine(self, task: Any) -> None:
            calls.append("refine")
            super().refine(task)

    models = [family("llama") for _ in range(2)]
    given = execute(inputs_of("llama"), folder=tmp_path, keep_parts=True)
    options: dict[str, Any] = {"solver": CountedWanda(), "refine": CountedDistill(steps=4)}
    first = secateur.prune(models[0], CONFIG, **given, **options)

    assert set(calls) == {"solve", "refine"}
    calls.clear()
    again = secateur.prune(models[1], CONFIG, **given, **options)
    assert not calls
    assert bits(models[1]) == bits(models[0]) != bits(family("llama"))
    assert (first.layers, first.errors) == (again.layers, again.errors)


def test_keep_parts_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="keep_parts needs a folder"):
        Execution(keep_parts=True)


# Ctrl-C


CALLS: list[Callable[[nn.Module], Any]] = [
    lambda model: secateur.prune(model, CONFIG),
    lambda model: prune(model),
    lambda model: prune(model, refine=["pcg", secateur.refiners.Distill(steps=2)]),
]


@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_at_any_line_leaves_the_model_unchanged_or_pruned(call: Callable[[nn.Module], Any]) -> None:
    expected = deep_mlp()
    lines = count_lines(lambda: call(expected))
    dense = bits(deep_mlp())
    step = max(1, lines // 60)
    interruptions = 0
    for line in range(1, lines + 1, step):
        model = deep_mlp()
        try:
            interrupt_at(line, lambda model=model: call(model))
        except KeyboardInterrupt:
            interruptions += 1
        assert bits(model) in (dense, bits(expected)), line
        assert all(module.training for module in model.modules())
        assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
        assert not any(module._forward_pre_hooks for module in model.modules())
    assert interruptions > 50
