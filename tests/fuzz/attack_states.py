"""Attack pruners with mutated states: they are refused without changes, or a run can reach them and ends correctly."""

import copy
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzz.attack_training import LAST, random_config
from fuzz.harness import attack
from secateur.errors import StateError
from tiny_models import bits, mlp
from training.models import NeverRevived, Trial, begin, equal_states
from training.test_resume import RUNS, STEPS, parts, start

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


def list_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of all values in a state."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [inner_path for key, inner in items for inner_path in [(*path, key), *list_paths(inner, (*path, key))]]


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
    """Change one value in place."""
    *above, key = chance.choice(list_paths(state))
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


def mix(chance: random.Random, state: dict[str, Any], other: dict[str, Any]) -> None:
    """Replace one part of a state with that of another step."""
    mine, theirs = chance.choice(list(zip(state["runs"], other["runs"], strict=True)))
    part = chance.choice(["step", "masks", "progress", "keep", "condemned_keep", "asked", "initial"])
    if part == "step":
        state["step"], state["optimizer_steps"] = other["step"], other["optimizer_steps"]
    elif part in mine:
        mine[part] = theirs[part]
    else:
        mine["progress"][part] = theirs["progress"][part]


def swap_flags(chance: random.Random, state: dict[str, Any], other: dict[str, Any]) -> None:  # noqa: ARG001
    """Swap a kept weight with a pruned one, or flip one flag, in masks, units or both."""
    run = chance.choice(state["runs"])
    pools = [pool for pool in (run["masks"], run["progress"]["keep"], run["progress"]["condemned_keep"]) if pool]
    if not pools:
        return
    layer, place = chance.choice(list(pools[0])), chance.randrange(1 << 20)
    for pool in pools if chance.random() < 0.5 else [chance.choice(pools)]:
        flags = pool[layer].view(-1)
        kept, pruned = flags.nonzero().view(-1), (~flags).nonzero().view(-1)
        which = chance.choice(["both", "kept", "pruned"])
        if len(kept) and which != "pruned":
            flags[kept[place % len(kept)]] = False
        if len(pruned) and which != "kept":
            flags[pruned[place % len(pruned)]] = True


NEARLY_VALID = [mix, swap_flags]


def count_pruned(flags: dict[str, torch.Tensor] | None, *, by_layer: bool) -> Any:
    counts = {name: int((~kept).sum()) for name, kept in (flags or {}).items()}
    return counts if by_layer else sum(counts.values())


def summarize_run(run: dict[str, Any]) -> Any:
    """Return what is equal in all states of a run at one step, whatever the weights."""
    by_layer = run["config"]["pruning_scope"] == "local"
    progress = run["progress"]
    return (
        [progress[key] is None for key in ("keep", "condemned_keep")],
        [count_pruned(progress[key], by_layer=by_layer) for key in ("keep", "condemned_keep")],
        (progress["asked"], progress["initial"], bool(run["masks"])),
    )


def check_reached(name: str, state: dict[str, Any], pattern: Any, found: dict[str, Any], expected: Any) -> None:
    """Assert that a run can reach an accepted state at its step; the counts of frozen layers may differ."""
    if name != "keep_zeros" and not found["keep_mask_layers"] and found["config"]["kind"] != "pattern_lock":
        assert summarize_run(found) == summarize_run(expected), state["step"]
    keep, later = (found["progress"][key] for key in ("keep", "condemned_keep"))
    if keep is None or found["config"]["kind"] == "pattern_lock":
        return
    now = pattern.weight_masks({unit: kept.numpy() for unit, kept in keep.items()})
    then = now if later is None else pattern.weight_masks({unit: kept.numpy() for unit, kept in later.items()})
    for layer, mask in found["masks"].items():
        assert not (mask.numpy() & ~np.asarray(now[layer])).any(), layer
        assert not (~mask.numpy() & np.asarray(then[layer])).any(), layer


@cache
def record_states(run: str) -> list[dict[str, Any]]:
    """Return the states of an undisturbed run, one per step."""
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


@attack(cases=100)
def pruner_states(chance: random.Random, folder: Path) -> None:  # noqa: ARG001
    """Load a state with one to three changes into a run, and finish that run."""
    run, step = chance.choice(list(RUNS)), chance.randrange(STEPS)
    torch.manual_seed(chance.randrange(1000))
    state = copy.deepcopy(record_states(run)[step])
    if chance.random() < 0.6:
        other = copy.deepcopy(record_states(run)[chance.randrange(STEPS)])
        chance.choice(NEARLY_VALID)(chance, state["pruner"], other["pruner"])
    else:
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            mutate(chance, state["pruner"])
    trial = resume(run, state)
    before, weights = copy.deepcopy(trial.pruner.state_dict()), bits(trial.model)
    try:
        trial.pruner.load_state_dict(state["pruner"])
    except StateError:
        assert equal_states(trial.pruner.state_dict(), before)
        assert bits(trial.model) == weights
        raise
    expected = record_states(run)[min(state["pruner"]["step"], STEPS - 1)]["pruner"]
    for group, found, true in zip(trial.pruner.plan.patterns, state["pruner"]["runs"], expected["runs"], strict=True):
        check_reached(run, state["pruner"], group, found, true)
    trial.train(range(step, STEPS), NeverRevived(trial.pruner))
    report = trial.pruner.finalize()
    assert report.step == trial.pruner.step
    if not state["pruner"]["runs"][0]["keep_mask_layers"] and run != "lock":
        assert trial.pruner.step < STEPS or report.is_complete


def third(initial: float, target: float, progress: float) -> float:  # noqa: ARG001
    """A custom schedule."""
    return (initial + target) / 3


def prepare_again(config: dict[str, Any], seed: int, *, has_zeros: bool) -> Trial:
    model = mlp(seed)
    if has_zeros:
        model[0].weight.data[4:12] = 0
    return begin(config, model=model, optimizer="sgd")


@attack(cases=20)
def reached_states(chance: random.Random, folder: Path) -> None:  # noqa: ARG001
    """Load the state of every step of a random run into a run of another model: all must be accepted."""
    config = random_config(chance)
    if config["kind"] != "pattern_lock":
        config |= {
            "max_sparsity_ratio_per_op": chance.choice([0.5, 0.8, 0.98]),
            "sparsity_decay_type": chance.choice(["cubic", "linear", "cosine", third]),
        }
    config["keep_zeros"], has_zeros = chance.random() < 0.3, chance.random() < 0.3
    trial = prepare_again(config, chance.randrange(100), has_zeros=has_zeros)
    frozen = chance.choice([None, None, "0", "2", "4"])
    for step in range(LAST + 2):
        if step == chance.randrange(LAST) and frozen is not None:
            trial.pruner.plan.patterns[0].keep_mask_layers[frozen] = "mine"
        other, state = prepare_again(config, 7, has_zeros=has_zeros), copy.deepcopy(trial.pruner.state_dict())
        try:
            other.pruner.load_state_dict(state)
        except StateError as error:
            raise AssertionError("a state that a run reached is refused") from error
        assert equal_states(other.pruner.state_dict(), state)
        trial.train([step])
