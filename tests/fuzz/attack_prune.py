"""Attack one-shot pruning: the model is unchanged, or pruned exactly as by an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from safetensors import SafetensorError
from torch import nn

import secateur
from fuzz.harness import attack
from fuzz.interrupts import count_lines, interrupt_at
from secateur.errors import SecateurError
from secateur.oneshot import Execution
from secateur.oneshot.pytorch import tensor_files
from secateur.oneshot.pytorch.blockwise import activations

CONFIG = {"pattern": "2:4"}

OPTIONS: list[dict[str, Any]] = [
    {"solver": "wanda"},
    {"solver": "sparsegpt", "refine": "pcg"},
    {"solver": "wanda", "refine": secateur.refiners.Block(steps=2)},
    {"solver": "magnitude", "refine": secateur.refiners.Distill(steps=2)},
]


class Body(nn.Module):
    """A block with two layers that read the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.left(x)) * self.right(x)


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Sequential(Body(), Body()), nn.Linear(8, 4))


def make_batches() -> list[torch.Tensor]:
    return [torch.randn(8, 8, generator=torch.Generator().manual_seed(number)) for number in range(2)]


def prune(model: nn.Module, way: int, folder: Path | None = None, **options: Any) -> None:
    data = options.pop("batches", None) or make_batches()
    secateur.prune(model, CONFIG, calibration=data, execution=Execution(folder=folder, **options), **OPTIONS[way])


def state_of(model: nn.Module) -> list[Any]:
    """Return everything that a run changes temporarily, bit for bit."""
    values = [parameter.detach().clone().view(torch.int32).tolist() for parameter in model.parameters()]
    flags = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    return [values, flags, hooks, [module.training for module in model.modules()], list(model.state_dict())]


class _Pruned(dict[int, list[Any]]):
    """Way → state of the model after an undisturbed run."""

    def __missing__(self, way: int) -> list[Any]:
        model = make_model()
        prune(model, way)
        self[way] = state_of(model)
        return self[way]


PRUNED = _Pruned()


@cache
def count_run_lines(way: int, *, in_folder: bool) -> int:
    """Count the lines of a complete run."""
    with TemporaryDirectory() as folder:
        return count_lines(lambda: prune(make_model(), way, Path(folder) if in_folder else None))


def check_resumed(way: int, folder: Path | None, **options: Any) -> None:
    """Assert that the same call ends like an undisturbed run."""
    model = make_model()
    prune(model, way, folder, **options)
    assert state_of(model) == PRUNED[way]
    if folder is not None:
        assert not list(folder.iterdir()), list(folder.iterdir())


def check_disturbed(act: Callable[[nn.Module], object], way: int, kinds: tuple[type[BaseException], ...]) -> bool:
    """Assert that the model is unchanged if `act` raises, and else pruned as by an undisturbed run.

    Returns:
        Whether `act` raised an error.
    """
    model = make_model()
    dense = state_of(model)
    try:
        act(model)
    except kinds:
        assert state_of(model) in (dense, PRUNED[way])
        return True
    assert state_of(model) == PRUNED[way]
    return False


@attack(cases=8, may_refuse=False)
def prune_interrupted(random: Random, folder: Path) -> None:
    """Simulate Ctrl-C at random lines of several calls, then let one finish."""
    way, run = random.randrange(len(OPTIONS)), random.choice([None, folder / "run"])
    lines = count_run_lines(way, in_folder=run is not None)
    for _ in range(random.randint(1, 3)):
        line = random.randint(1, lines)
        check_disturbed(
            lambda model, line=line: interrupt_at(line, lambda: prune(model, way, run)), way, (KeyboardInterrupt,)
        )
    check_resumed(way, run)


@attack(cases=30, may_refuse=False)
def prune_on_a_full_disk(random: Random, folder: Path) -> None:
    """Fail a random write with an error of Python or of safetensors; the same call resumes later."""
    way, run = random.randrange(len(OPTIONS)), random.choice([None, folder / "run"])
    offload = random.choice(["memory", "disk"])
    error = random.choice([OSError(28, "No space left on device"), SafetensorError("No space left on device")])
    left = random.randint(0, 14)

    def fail_later(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise error
            return original(*arguments, **options)

        return call

    assert PRUNED[way]  # computed now, while the disk works
    names = random.choice([["save_file"], ["_sync"], ["save_file", "_sync"]])
    patches = {name: fail_later(getattr(tensor_files, name)) for name in names}
    save = patches.get("save_file", activations.save_file)
    with patch.multiple(tensor_files, **patches), patch.object(activations, "save_file", save):
        check_disturbed(lambda model: prune(model, way, run, offload=offload), way, (SecateurError,))
    assert run is None or not list(run.glob("*.part"))
    check_resumed(way, run, offload=offload)


def mutate(content: bytes, random: Random) -> bytes:
    """Truncate, extend or empty the content, or change some of its bytes."""
    kind = random.randrange(5)
    place = random.randrange(max(1, len(content)))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content + random.randbytes(random.randint(1, 20))
    if kind == 2:
        return b""
    changed = bytearray(content or b"\0")
    for _ in range(random.randint(1, 4)):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


@attack(cases=15, may_refuse=False)
def prune_with_a_damaged_journal(random: Random, folder: Path) -> None:
    """Damage the files of an interrupted run: they are refused, or the result is that of an undisturbed run."""
    way, run = random.randrange(len(OPTIONS)), folder / "run"
    lines = count_run_lines(way, in_folder=True)
    line = random.randint(lines // 2, lines)
    check_disturbed(lambda model: interrupt_at(line, lambda: prune(model, way, run)), way, (KeyboardInterrupt,))
    for path in random.sample(sorted(run.iterdir()), k=min(random.randint(1, 2), len(list(run.iterdir())))):
        act = random.randrange(4)
        if act == 0:
            path.unlink()
        elif act == 1:
            path.rename(path.with_name(random.choice(["00000.done.safetensors", "00001.done.safetensors", "x"])))
        else:
            path.write_bytes(mutate(path.read_bytes(), random))
    check_disturbed(lambda model: prune(model, way, run), way, (SecateurError,))


def strange_batch(random: Random) -> Any:
    """Return a batch that the model may or may not accept."""
    shape = random.choice([(8, 8), (0, 8), (8, 0), (1, 8), (8,), (), (2, 3, 8), (8, 7), (8, 1)])
    values = random.choice([torch.zeros, torch.ones, torch.randn])(shape)
    values *= random.choice([1.0, 0.0, -0.0, 1e-30, 1e25, 3e38, float("inf"), float("nan")])
    make = random.choice(
        [
            lambda: values,
            lambda: values,
            lambda: values.to(random.choice([torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])),
            lambda: values.to(random.choice([torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2])),
            values.to_sparse,
            lambda: values.to("meta"),
            lambda: values.expand(random.choice([1, 4]), *shape),
            lambda: values.clone().requires_grad_(),
            lambda: torch.nested.nested_tensor([torch.ones(2, 8), torch.ones(3, 8)], layout=torch.jagged),
            lambda: nn.parameter.UninitializedParameter(),
            lambda: values.flip(0) if shape else values,
            lambda: torch.view_as_complex(torch.randn(8, 8, 2)).conj().imag,
        ]
    )
    batch = make()
    wraps: list[Callable[[Any], Any]] = [
        lambda x: x,
        lambda x: x,
        lambda x: (x,),
        lambda x: {"input": x},
        lambda x: {"input": [x]},
        lambda x: {"input": x, "attention_mask": torch.zeros(8, 8)},
        lambda x: (x, x),
        lambda _: None,
        lambda _: [],
    ]
    return random.choice(wraps)(batch)


@attack(cases=150, may_refuse=False)
def prune_with_strange_data(random: Random, folder: Path) -> None:  # noqa: ARG001
    """Prune with unusual batches: they are refused, or the result is finite and has the right sparsity."""
    torch.manual_seed(random.randrange(1 << 30))
    way = random.randrange(len(OPTIONS))
    given = [*make_batches(), *(strange_batch(random) for _ in range(random.randint(1, 2)))]
    if random.random() < 0.5:
        del given[:2]
    model = make_model()
    dense = state_of(model)
    try:
        prune(model, way, batches=given)
    except SecateurError:
        assert state_of(model) == dense
        return
    for name, parameter in model.named_parameters():
        assert bool(parameter.isfinite().all()), name
    for layer in (model[0], model[1][0].left, model[1][0].right, model[1][1].left, model[1][1].right):
        assert bool(((layer.weight == 0).reshape(-1, 4).sum(dim=1) >= 2).all())
    assert state_of(model)[1:] == dense[1:]


KILLED = """
import sys
from pathlib import Path
from fuzz import attack_prune
model = attack_prune.make_model()
print("ready", flush=True)
attack_prune.prune(model, int(sys.argv[1]), Path(sys.argv[2]))
"""


@attack(cases=1, seconds=120, may_refuse=False)
def prune_killed(random: Random, folder: Path) -> None:
    """Kill a process at a random moment; the same call resumes."""
    way, run = random.randrange(len(OPTIONS)), folder / "run"
    path = os.pathsep.join(map(str, sys.path))
    command = [sys.executable, "-c", KILLED, str(way), str(run)]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3 * random.random())
        process.send_signal(random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
    check_resumed(way, run)
