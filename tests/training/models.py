"""What the tests of training share: optimizers, a training loop, and the checks that hold after every step."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

import secateur
from secateur.training.pytorch import PytorchPruner
from tiny_models import mlp

Factory = Callable[[Iterable[nn.Parameter]], Optimizer]

OPTIMIZERS: dict[str, Factory] = {
    "sgd": lambda weights: SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda weights: SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda weights: Adam(weights, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda weights: Adam(weights, lr=0.01, amsgrad=True),
    "adamw": lambda weights: AdamW(weights, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda weights: RMSprop(weights, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda weights: Adagrad(weights, lr=0.01),
    "fused_adamw": lambda weights: AdamW(weights, lr=0.01, weight_decay=0.1, fused=True),
    "fused_sgd": lambda weights: SGD(weights, lr=0.1, momentum=0.9, fused=True),
    "foreach_adamw": lambda weights: AdamW(weights, lr=0.01, foreach=True),
    "foreach_sgd": lambda weights: SGD(weights, lr=0.1, momentum=0.9, foreach=True),
}

UNITS = 256
"""Units of 4x1 in the two layers of `mlp` that are pruned, 128 in each."""

CONFIG: dict[str, Any] = {
    "pattern": "4x1",
    "target_sparsity": 0.75,
    "criterion": "snip_momentum",
    "end_step": 9,
    "pruning_frequency": 2,
}


PROGRESSIVE = {**CONFIG, "kind": "progressive", "progressive_steps": 2}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of one step: the same in every run, resumed or not."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 16, generator=generator), torch.randn(8, 4, generator=generator)


def backward(model: nn.Module, step: int, scale: float | torch.Tensor = 1.0) -> None:
    inputs, targets = batch(step)
    dtype = next(model.parameters()).dtype
    loss = (model(inputs.to(dtype)) - targets.to(dtype)).square().mean()
    (loss * scale).backward()


def nothing(step: int) -> None:
    """What is done after a step unless a test says otherwise."""


def train(
    model: nn.Module,
    optimizers: Optimizer | Iterable[Optimizer],
    steps: Iterable[int],
    after: Callable[[int], None] = nothing,
) -> None:
    """Train on the batches of `steps`, numbered from 0; `after` is called with the number of steps made."""
    optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    for step in steps:
        model.zero_grad()
        backward(model, step)
        for optimizer in optimizers:
            optimizer.step()
        after(step + 1)


class Trial(NamedTuple):
    """All that a run consists of."""

    model: nn.Sequential
    optimizer: Optimizer
    pruner: PytorchPruner

    def train(self, steps: Iterable[int], after: Callable[[int], None] = nothing) -> "Trial":
        train(self.model, self.optimizer, steps, after)
        return self


def begin(config: dict[str, Any] = CONFIG, *, model: nn.Sequential | None = None, optimizer: str = "adamw") -> Trial:
    """Prepare `mlp` or another model."""
    model = mlp() if model is None else model
    built = OPTIMIZERS[optimizer](model.parameters())
    return Trial(model, built, secateur.prepare(model, config, optimizer=built))


def revived(pruner: PytorchPruner) -> list[str]:
    """The layers in which a pruned weight is not zero."""
    return [
        name for name, mask in pruner.masks.items() if pruner.model.get_submodule(name).weight[~mask].count_nonzero()
    ]


def pruned_units(pruner: PytorchPruner) -> int:
    return sum(layer.pruned_units for layer in pruner.report().layers)


def equal_states(left: Any, right: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        bytewise = (left.dtype, left.shape) == (right.dtype, right.shape)
        return bytewise and torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal_states(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal_states, left, right))
    return bool(left == right)


def hooks(optimizer: Optimizer) -> int:
    """How many hooks hang on an optimizer."""
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


class NeverRevived:
    """Called after each step: what is pruned is zero and stays pruned, unless the kind of the run regrows."""

    def __init__(self, pruner: PytorchPruner) -> None:
        self.pruner = pruner
        self.before = pruner.masks

    def __call__(self, step: int) -> None:
        assert revived(self.pruner) == [], step
        masks = self.pruner.masks
        if not self.pruner.plan.config.has_regrowth:
            assert [name for name, mask in masks.items() if (mask & ~self.before[name]).any()] == [], step
        self.before = masks
