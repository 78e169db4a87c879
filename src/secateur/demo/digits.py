"""Handwritten digits, two small networks, and the training loop that a user would write."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import secateur
from secateur.training import PruningReport

__all__ = ["CASES", "NETS", "Case", "Digits", "Recipe", "Run", "prune_all"]

PIXEL_LEVELS = 16
CLASSES = 10


@dataclass(frozen=True, slots=True)
class Case:
    """What is pruned and how much.

    Attributes:
        pattern: Pattern specification.
        target: Share of units to prune, in [0, 1].
    """

    pattern: str
    target: float


CASES = (
    Case("1x1", 0.5),
    Case("1x1", 0.9),
    Case("4x1", 0.5),
    Case("4x1", 0.8),
    Case("4x1", 0.9),
    Case("2:4", 0.5),
    Case("1xchannel", 0.5),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How every network here is trained.

    Attributes:
        dense_epochs: Epochs before pruning.
        tuning_epochs: Epochs after it began; the dense reference trains on for as many.
        batch: Images in a batch.
        learning_rate: Of AdamW.
    """

    dense_epochs: int = 15
    tuning_epochs: int = 20
    batch: int = 32
    learning_rate: float = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One network pruned in one way from one start.

    Attributes:
        net: Its name in `NETS`.
        case: What was pruned.
        seed: Start and order of batches.
        dense_accuracy: Share of test images that the equally long trained dense network gets right, in [0, 1].
        accuracy: The same of the pruned network.
        seconds: Time of the fine-tuning with pruning.
        config: The configuration.
        report: What was pruned.
        model: The pruned network.
    """

    net: str
    case: Case
    seed: int
    dense_accuracy: float
    accuracy: float
    seconds: float
    config: secateur.PruningConfig
    report: PruningReport
    model: nn.Module


class Digits:
    """scikit-learn's digits in a fixed split, and how to train and test on them.

    Args:
        recipe: How to train.
        on_epoch: Called after each epoch.
    """

    def __init__(self, recipe: Recipe, on_epoch: Callable[[], None]) -> None:
        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images, labels, test_size=0.3, random_state=0, stratify=labels)
        self.train_images, self.test_images = (torch.tensor(part).float() / PIXEL_LEVELS for part in split[:2])
        self.train_labels, self.test_labels = (torch.tensor(part) for part in split[2:])
        self.recipe = recipe
        self.on_epoch = on_epoch

    @property
    def tuning_steps(self) -> int:
        """Optimizer steps of a fine-tuning."""
        return self.recipe.tuning_epochs * -(-len(self.train_images) // self.recipe.batch)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer."""
        return torch.optim.AdamW(model.parameters(), lr=self.recipe.learning_rate)

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, seed: int) -> None:
        """An ordinary training loop: it knows nothing of pruning."""
        order = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for batch in torch.randperm(len(self.train_images), generator=order).split(self.recipe.batch):
                loss = nn.functional.cross_entropy(model(self.train_images[batch]), self.train_labels[batch])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            self.on_epoch()

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of test images that a network gets right."""
        right = model(self.test_images).argmax(dim=1) == self.test_labels
        return int(right.sum()) / len(right)


def convolutional() -> nn.Sequential:
    """Two convolutions and two linear layers, 53,000 weights."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


def perceptron() -> nn.Sequential:
    """Three linear layers, 51,000 weights."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, CLASSES))


NETS: dict[str, Callable[[], nn.Module]] = {"conv": convolutional, "mlp": perceptron}


def prune_all(digits: Digits, net: str, seed: int, cases: tuple[Case, ...] = CASES) -> Iterator[Run]:
    """Train a network once, then prune a copy of it for each case."""
    with _one_thread():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trained = NETS[net]()
        digits.train(trained, digits.optimizer(trained), digits.recipe.dense_epochs, seed)
        reference = copy.deepcopy(trained)
        digits.train(reference, digits.optimizer(reference), digits.recipe.tuning_epochs, seed)
        dense_accuracy = digits.accuracy(reference)
        for case in cases:
            start = time.perf_counter()
            config, report, model = _prune(digits, copy.deepcopy(trained), case, seed)
            yield Run(
                net=net,
                case=case,
                seed=seed,
                dense_accuracy=dense_accuracy,
                accuracy=digits.accuracy(model),
                seconds=time.perf_counter() - start,
                config=config,
                report=report,
                model=model,
            )


def _prune(
    digits: Digits, model: nn.Module, case: Case, seed: int
) -> tuple[secateur.PruningConfig, PruningReport, nn.Module]:
    config = secateur.PruningConfig(
        pattern=case.pattern, target_sparsity=case.target, end_step=max(1, digits.tuning_steps // 2)
    )
    optimizer = digits.optimizer(model)
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    digits.train(model, optimizer, digits.recipe.tuning_epochs, seed)
    return config, pruner.finalize(), model


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small lose more to the handing over between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
