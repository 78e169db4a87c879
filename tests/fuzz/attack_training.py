"""Attack training: pruned weights are zero after each step and each exception, or the change is refused."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import secateur
from fuzz.harness import attack
from secateur.errors import SecateurError
from secateur.training.pytorch import PytorchPruner
from tiny_models import mlp
from training.models import OPTIMIZERS, backward, revived
from training.test_interrupts import InterruptAt

PATTERNS = ["1x1", "4x1", "1x4", "8x1", "2:4", "1xchannel", "channelx1"]
CRITERIA = [
    "magnitude",
    "snip",
    "snip_momentum",
    "gradient",
    "taylor",
    "mask_gradient",
    "mask_fisher",
    "movement",
    "random",
]
LAST = 7


def random_config(chance: random.Random) -> dict[str, Any]:
    criterion = chance.choice(CRITERIA)
    pattern = chance.choice(PATTERNS)
    config: dict[str, Any] = {
        "pattern": pattern,
        "criterion": criterion,
        "target_sparsity": chance.choice([0.25, 0.5]) if pattern == "2:4" else chance.choice([0.25, 0.5, 0.75]),
        "start_step": chance.choice([1, 2, 3]),
        "end_step": LAST,
        "pruning_frequency": chance.choice([1, 2, 3]),
        "kind": chance.choice(["iterative", "progressive"]),
        "progressive_steps": chance.choice([2, 3]),
        "pruning_scope": chance.choice(["global", "local"]),
    }
    if chance.random() < 0.3:
        config |= {"reg_type": "group_lasso", "reg_coeff": 0.01}
    if chance.random() < 0.1:
        config = {"kind": "pattern_lock"}
    return config


def bad_gradient(model: Any, optimizer: Optimizer, chance: random.Random) -> None:  # noqa: ARG001
    gradient = model[chance.choice([0, 2])].weight.grad
    if gradient is not None:
        gradient.fill_(chance.choice([torch.nan, torch.inf]))


def no_gradient(model: Any, optimizer: Optimizer, chance: random.Random) -> None:
    if isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["fused"]:
        return  # torch raises a TypeError if only some parameters have a momentum
    model[chance.choice([0, 2])].weight.grad = None


def remove_weights(model: Any, optimizer: Optimizer, chance: random.Random) -> None:  # noqa: ARG001
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][chance.choice([1, 3, 6]) :]


def add_group(model: Any, optimizer: Optimizer, chance: random.Random) -> None:  # noqa: ARG001
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def swap_data(model: Any, optimizer: Optimizer, chance: random.Random) -> None:  # noqa: ARG001
    weight = model[chance.choice([0, 2])].weight
    weight.data = chance.choice([weight.data.clone(), weight.data.T, torch.ones(3, 3), weight.data.T.contiguous().T])


def replace_weight(model: Any, optimizer: Optimizer, chance: random.Random) -> None:  # noqa: ARG001
    layer = model[chance.choice([0, 2])]
    layer.weight = nn.Parameter(layer.weight.detach().clone())


def freeze(model: Any, optimizer: Optimizer, chance: random.Random) -> None:  # noqa: ARG001
    model[chance.choice([0, 2])].requires_grad_(requires_grad=False)


def move_to_meta(model: Any, optimizer: Optimizer, chance: random.Random) -> None:  # noqa: ARG001
    model[chance.choice([0, 2])].to("meta")


def drop_momentum(model: Any, optimizer: Optimizer, chance: random.Random) -> None:  # noqa: ARG001
    optimizer.state.clear()


EVENTS: list[Callable[[Any, Optimizer, random.Random], None]] = [
    bad_gradient,
    no_gradient,
    remove_weights,
    add_group,
    swap_data,
    replace_weight,
    freeze,
    move_to_meta,
    drop_momentum,
]


def run_step(chance: random.Random, model: nn.Module, optimizer: Optimizer, pruner: PytorchPruner, step: int) -> None:
    """Run a step with hooks or manually, with or without a closure."""
    if pruner._hooks:
        optimizer.step((lambda: backward(model, step)) if chance.random() < 0.2 else None)
        return
    pruner.before_step()
    optimizer.step()
    pruner.after_step()


def check(pruner: PytorchPruner, before: dict[str, Any]) -> dict[str, Any]:
    """Assert that pruned weights are zero and stay pruned."""
    assert revived(pruner) == []
    masks = pruner.masks
    assert all((mask <= before[name]).all() for name, mask in masks.items())
    return masks


def begin(chance: random.Random, config: dict[str, Any]) -> tuple[nn.Sequential, Optimizer, PytorchPruner]:
    model = mlp(chance.randrange(100))
    if config["kind"] == "pattern_lock":
        model[0].weight.data[:8] = 0
    optimizer = OPTIMIZERS[chance.choice(list(OPTIMIZERS))](model.parameters())
    if chance.random() < 0.3:
        return model, optimizer, secateur.prepare(model, {**config, "reg_type": None})
    return model, optimizer, secateur.prepare(model, config, optimizer=optimizer)


@attack(cases=60)
def interrupted_training(chance: random.Random, folder: Path) -> None:  # noqa: ARG001
    """Simulate Ctrl-C at random operations of random steps; the loop continues or is closed."""
    model, optimizer, pruner = begin(chance, random_config(chance))
    masks = pruner.masks
    with pruner:
        for step in range(LAST + 3):
            model.zero_grad()
            backward(model, step)
            is_interrupted = False
            if chance.random() < 0.3:
                try:
                    with InterruptAt(chance.randrange(150)):
                        run_step(chance, model, optimizer, pruner, step)
                except KeyboardInterrupt:
                    is_interrupted = True
                    optimizer.state.clear()  # torch's state may be incomplete
                    if not pruner._hooks:
                        with suppress(SecateurError):
                            pruner.after_step()
            else:
                run_step(chance, model, optimizer, pruner, step)
            if not is_interrupted:
                masks = check(pruner, masks)
        if chance.random() < 0.5:
            pruner.finalize()
    check(pruner, masks)


@attack(cases=60)
def disturbed_training(chance: random.Random, folder: Path) -> None:  # noqa: ARG001
    """Change weights, gradients and groups between steps: errors name the layer, or the run ends correctly."""
    config = random_config(chance)
    model, optimizer, pruner = begin(chance, config)
    masks = pruner.masks
    at = {chance.randrange(LAST + 2): chance.choice(EVENTS) for _ in range(chance.choice([1, 1, 2]))}
    step = 0
    while pruner.step < LAST:
        model.zero_grad()
        backward(model, step)
        if step in at:
            at[step](model, optimizer, chance)
        step += 1
        try:
            run_step(chance, model, optimizer, pruner, step)
        except SecateurError as error:
            if "layer '" not in str(error):
                raise AssertionError("the error does not name a layer") from error
            with suppress(SecateurError):
                pruner.close()
            assert not pruner.is_active
            raise
        masks = check(pruner, masks)
    report = pruner.finalize()
    assert report.is_complete
    if config["kind"] != "pattern_lock":
        assert abs(report.unit_sparsity - config["target_sparsity"]) < 0.02 or config["pattern"] == "2:4"
