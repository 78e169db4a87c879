"""Train, prune and test small networks on handwritten digits, in any framework."""

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

__all__ = ["CLASSES", "Digits", "DigitsResult", "Hyperparameters", "PruningSetting", "prune_all"]

PIXEL_LEVELS = 16
CLASSES = 10


@dataclass(frozen=True, slots=True)
class PruningSetting:
    """What to prune, and how much.

    Attributes:
        pattern: Pattern specification.
        target_sparsity: Share of units to prune, in [0, 1].
    """

    pattern: str
    target_sparsity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """How to train a network.

    Attributes:
        dense_epochs: Epochs before pruning.
        tuning_epochs: Epochs of fine-tuning with pruning; the dense baseline trains for the same number.
        batch: Images in a batch.
        learning_rate: Learning rate of AdamW.
    """

    dense_epochs: int = 15
    tuning_epochs: int = 20
    batch: int = 32
    learning_rate: float = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsResult:
    """The result of pruning one network with one setting and one seed.

    Attributes:
        net: The network's name.
        setting: What to prune, and how much.
        seed: Seed of the initial weights and of the order of batches.
        dense_accuracy: Share of test images that the dense network classifies correctly after as much training, in
            [0, 1].
        accuracy: The same for the pruned network.
        seconds: Duration of the fine-tuning with pruning.
        config: The pruning configuration.
        report: The report of the pruning.
        model: The pruned network, in the framework that trained it.
    """

    net: str
    setting: PruningSetting
    seed: int
    dense_accuracy: float
    accuracy: float
    seconds: float
    config: secateur.PruningConfig
    report: PruningReport
    model: Any


class Digits(ABC):
    """Train, prune and test networks on scikit-learn's digits, in a fixed split; one subclass per framework.

    Args:
        hyperparameters: How to train.
        on_epoch: Called after each epoch.

    Attributes:
        framework: The framework's name.
        nets: Names of the networks that `build` makes.
        settings: The default settings of `prune_all`.
        train_images, test_images: One image per row, 64 pixels in [0, 1] as float32.
        train_labels, test_labels: The digits, as int64.
    """

    framework: ClassVar[str]
    nets: ClassVar[tuple[str, ...]]
    settings: ClassVar[tuple[PruningSetting, ...]]

    def __init__(self, hyperparameters: Hyperparameters, on_epoch: Callable[[], None]) -> None:
        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images, labels, test_size=0.3, random_state=0, stratify=labels)
        self.train_images, self.test_images = ((part / PIXEL_LEVELS).astype(np.float32) for part in split[:2])
        self.train_labels, self.test_labels = (part.astype(np.int64) for part in split[2:])
        self.hyperparameters = hyperparameters
        self.on_epoch = on_epoch

    @property
    def tuning_steps(self) -> int:
        """Optimizer steps of a fine-tuning."""
        return self.hyperparameters.tuning_epochs * -(-len(self.train_images) // self.hyperparameters.batch)

    def compute_accuracy(self, model: Any) -> float:
        """Compute the share of test images that a network classifies correctly."""
        is_correct = self.predict(model) == self.test_labels
        return int(is_correct.sum()) / len(is_correct)

    @abstractmethod
    def get_versions(self) -> dict[str, Any]:
        """Return the versions of the packages that train the network."""

    @abstractmethod
    def build(self, net: str, seed: int) -> Any:
        """Build a new network; `net` is one of `nets`."""

    @abstractmethod
    def copy(self, model: Any) -> Any:
        """Copy a network with its weights."""

    @abstractmethod
    def train(self, model: Any, epochs: int, seed: int) -> None:
        """Train a network with a fresh optimizer; `seed` fixes the order of batches."""

    @abstractmethod
    def prune(self, model: Any, config: secateur.PruningConfig, seed: int) -> PruningReport:
        """Prune a network while training it for `tuning_epochs`, otherwise like `train`."""

    @abstractmethod
    def predict(self, model: Any) -> Any:
        """Predict the digit in each test image, as an array of integers."""


def prune_all(
    digits: Digits, net: str, seed: int, settings: tuple[PruningSetting, ...] | None = None
) -> Iterator[DigitsResult]:
    """Train a network once, then prune a copy of it for each setting; ``None``: those of the framework."""
    with _limit_to_one_thread():
        dense = digits.build(net, seed)
        digits.train(dense, digits.hyperparameters.dense_epochs, seed)
        baseline = digits.copy(dense)
        digits.train(baseline, digits.hyperparameters.tuning_epochs, seed)
        dense_accuracy = digits.compute_accuracy(baseline)
        for setting in digits.settings if settings is None else settings:
            config = secateur.PruningConfig(
                pattern=setting.pattern,
                target_sparsity=setting.target_sparsity,
                end_step=max(1, digits.tuning_steps // 2),
            )
            model = digits.copy(dense)
            start = time.perf_counter()
            report = digits.prune(model, config, seed)
            yield DigitsResult(
                net=net,
                setting=setting,
                seed=seed,
                dense_accuracy=dense_accuracy,
                accuracy=digits.compute_accuracy(model),
                seconds=time.perf_counter() - start,
                config=config,
                report=report,
                model=model,
            )


@contextmanager
def _limit_to_one_thread() -> Iterator[None]:
    """Limit torch to one thread: for networks this small, threads cost more time than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
