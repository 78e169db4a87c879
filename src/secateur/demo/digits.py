"""Handwritten digits, and what is done with them in every framework: train, prune while training on, test."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import secateur
from secateur.training import PruningReport

__all__ = ["CLASSES", "Case", "Digits", "Recipe", "Run", "prune_all"]

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
        net: The network's name.
        case: What was pruned.
        seed: Start and order of batches.
        dense_accuracy: Share of test images that the equally long trained dense network gets right, in [0, 1].
        accuracy: The same of the pruned network.
        seconds: Time of the fine-tuning with pruning.
        config: The configuration.
        report: What was pruned.
        model: The pruned network, of the framework that it was trained in.
    """

    net: str
    case: Case
    seed: int
    dense_accuracy: float
    accuracy: float
    seconds: float
    config: secateur.PruningConfig
    report: PruningReport
    model: Any


class Digits(ABC):
    """scikit-learn's digits in a fixed split, and how one framework trains and tests on them.

    Args:
        recipe: How to train.
        on_epoch: Called after each epoch.

    Attributes:
        framework: The framework's name.
        nets: Names of the networks that `build` makes.
        cases: What is pruned unless `prune_all` is told otherwise.
        train_images, test_images: One image per row, 64 pixels in [0, 1] as float32.
        train_labels, test_labels: The digits, as int64.
    """

    framework: ClassVar[str]
    nets: ClassVar[tuple[str, ...]]
    cases: ClassVar[tuple[Case, ...]]

    def __init__(self, recipe: Recipe, on_epoch: Callable[[], None]) -> None:
        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images, labels, test_size=0.3, random_state=0, stratify=labels)
        self.train_images, self.test_images = ((part / PIXEL_LEVELS).astype(np.float32) for part in split[:2])
        self.train_labels, self.test_labels = (part.astype(np.int64) for part in split[2:])
        self.recipe = recipe
        self.on_epoch = on_epoch

    @property
    def tuning_steps(self) -> int:
        """Optimizer steps of a fine-tuning."""
        return self.recipe.tuning_epochs * -(-len(self.train_images) // self.recipe.batch)

    def accuracy(self, model: Any) -> float:
        """Share of test images that a network gets right."""
        right = self.predict(model) == self.test_labels
        return int(right.sum()) / len(right)

    @abstractmethod
    def software(self) -> dict[str, Any]:
        """What trains here, in which version."""

    @abstractmethod
    def build(self, net: str, seed: int) -> Any:
        """A new network; `net` is one of `nets`."""

    @abstractmethod
    def copy(self, model: Any) -> Any:
        """A network with the same weights, in memory of its own."""

    @abstractmethod
    def train(self, model: Any, epochs: int, seed: int) -> None:
        """Train a network with a fresh optimizer; `seed` fixes the order of batches."""

    @abstractmethod
    def prune(self, model: Any, config: secateur.PruningConfig, seed: int) -> PruningReport:
        """Train a network for `tuning_epochs` as `train` does, and prune it meanwhile."""

    @abstractmethod
    def predict(self, model: Any) -> Any:
        """What a network takes each test image for, as an array of integers."""


def prune_all(digits: Digits, net: str, seed: int, cases: tuple[Case, ...] | None = None) -> Iterator[Run]:
    """Train a network once, then prune a copy of it for each case; ``None``: the framework's."""
    with _limit_to_one_thread():
        trained = digits.build(net, seed)
        digits.train(trained, digits.recipe.dense_epochs, seed)
        reference = digits.copy(trained)
        digits.train(reference, digits.recipe.tuning_epochs, seed)
        dense_accuracy = digits.accuracy(reference)
        for case in digits.cases if cases is None else cases:
            config = secateur.PruningConfig(
                pattern=case.pattern, target_sparsity=case.target, end_step=max(1, digits.tuning_steps // 2)
            )
            model = digits.copy(trained)
            start = time.perf_counter()
            report = digits.prune(model, config, seed)
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


@contextmanager
def _limit_to_one_thread() -> Iterator[None]:
    """In torch, networks this small lose more to the handing over between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
