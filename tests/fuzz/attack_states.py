"""Mutated states of pruners: refused with nothing changed, or the run ends with exact zeros and passes its checks."""

import copy
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzz.harness import attack
from secateur.errors import StateError
from training.models import NeverRevived, Trial, bits
from training.test_resume import RUNS, STEPS, parts, same, start

HOSTILE: list[Callable[[], Any]] = [
    lambda: None,
    lambda: 7,
    lambda: -1,
    lambda: 10**30,
    lambda: 0.3,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: True,
    lambda: "x\x1b[2J" * 50,
    lambda: b"\x00",
    list,
    dict,
    lambda: [{}],
    lambda: {"0": torch.ones(3)},
    lambda: {1: 2},
    lambda: torch.ones(3),
    lambda: torch.tensor(1),
    lambda: torch.zeros(32, 16, dtype=torch.bool),
    lambda: np.ones((32, 16), bool),
    object,
    lambda: torch.ones(32, 16, dtype=torch.bool, device="meta"),
    lambda: torch.nn.Linear(2, 2),
    lambda: {"0": None, "2": None},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all that is in a state."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *places(inner, (*path, key))]]


def change_number(chance: random.Random, number: float) -> Any:
    if isinstance(number, int):
        return number + chance.choice([-2, -1, 1, 2, 1000, 10**12])
    return chance.choice([number + 0.01, number - 0.01, number + 1e-3, number * 2, 1 - number, 1.0, 0.0, -number])


def change_tensor(chance: random.Random, tensor: torch.Tensor) -> Any:
    changed = tensor.clone()
    flat = changed.reshape(-1)
    place = chance.randrange(len(flat))
    if tensor.dtype == torch.bool:
        values: list[Any] = [~flat[place], True, False]
    else:
        values = [torch.nan, torch.inf, -torch.inf, 1e30, -1.0, 0.0]
    flat[place] = chance.choice(values)
    return chance.choice(
        [
            lambda: changed,
            lambda: changed,
            lambda: changed,
            lambda: ~tensor if tensor.dtype == torch.bool else -tensor,
            lambda: torch.ones_like(tensor),
            lambda: torch.zeros_like(tensor),
            lambda: tensor.flip(0),
            lambda: tensor[torch.randperm(len(tensor))],
            lambda: tensor.float() if tensor.dtype == torch.bool else tensor.double(),
            lambda: tensor[:-1],
            lambda: tensor[None],
            lambda: tensor.reshape(-1)[:1].expand(tensor.shape),
            lambda: tensor.to_sparse(),
            lambda: tensor.to("meta"),
            lambda: tensor.float().numpy(),
            lambda: tensor.float().requires_grad_(),
            lambda: tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor,
            lambda: tensor.tolist(),
        ]
    )()


def mutate(chance: random.Random, state: dict[str, Any]) -> None:
    """Change one thing in place."""
    *above, key = chance.choice(places(state))
    container: Any = state
    for part in above:
        container = container[part]
    value = container[key]
    action = chance.randrange(6)
    if action == 0:
        container[key] = chance.choice(HOSTILE)()
    elif action == 1 and isinstance(container, dict):
        del container[key]
    elif action == 2 and isinstance(container, dict):
        container[chance.choice(["0", "2", "new", "x\x1b[2J", 3, None])] = chance.choice([value, HOSTILE[0](), "mine"])
    elif action == 3 and isinstance(container, dict):
        other = chance.choice(list(container))
        container[key], container[other] = container[other], value
    elif isinstance(value, torch.Tensor):
        container[key] = change_tensor(chance, value)
    elif isinstance(value, (int, float)):
        container[key] = change_number(chance, value)
    else:
        container[key] = chance.choice(HOSTILE)()


@cache
def saved(run: str) -> list[dict[str, Any]]:
    """All states of an undisturbed run, one per step."""
    trial, states = start(RUNS[run]), []
    for step in range(STEPS):
        states.append(copy.deepcopy(parts(trial)))
        trial.train([step])
    return states


def resume(run: str, state: dict[str, Any]) -> Trial:
    trial = start(RUNS[run], seed=1)
    trial.model.load_state_dict(state["model"])
    trial.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    return trial


@attack(cases=250)
def pruner_states(chance: random.Random, folder: Path) -> None:  # noqa: ARG001
    """Load a state with one, two or three changes into a run, and end that run."""
    run, step = chance.choice(list(RUNS)), chance.randrange(STEPS)
    torch.manual_seed(chance.randrange(1000))
    state = copy.deepcopy(saved(run)[step])
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        mutate(chance, state["pruner"])
    trial = resume(run, state)
    before, weights = copy.deepcopy(trial.pruner.state_dict()), bits(trial.model)
    try:
        trial.pruner.load_state_dict(state["pruner"])
    except StateError:
        assert same(trial.pruner.state_dict(), before)
        assert bits(trial.model) == weights
        raise
    trial.train(range(step, STEPS), NeverRevived(trial.pruner))
    report = trial.pruner.finalize()
    assert report.step == trial.pruner.step
    if not state["pruner"]["runs"][0]["keep_mask_layers"] and run != "lock":
        assert trial.pruner.step < STEPS or report.is_complete
