"""Train and prune two small PyTorch networks with an ordinary training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import secateur
from secateur.demo.digits import CLASSES, Digits, PruningSetting
from secateur.training import PruningReport

__all__ = ["NETS", "TorchDigits"]


def build_convnet() -> nn.Sequential:
    """Build two convolutions and two linear layers, 53,000 weights."""
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


def build_mlp() -> nn.Sequential:
    """Build three linear layers, 51,000 weights."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, CLASSES))


NETS: dict[str, Callable[[], nn.Module]] = {"conv": build_convnet, "mlp": build_mlp}


class TorchDigits(Digits):
    """See `Digits`."""

    framework = "PyTorch"
    nets = tuple(NETS)
    settings = (
        PruningSetting("1x1", 0.5),
        PruningSetting("1x1", 0.9),
        PruningSetting("4x1", 0.5),
        PruningSetting("4x1", 0.8),
        PruningSetting("4x1", 0.9),
        PruningSetting("2:4", 0.5),
        PruningSetting("1xchannel", 0.5),
    )

    def get_versions(self) -> dict[str, Any]:
        """See `Digits.get_versions`."""
        return {"torch": torch.__version__}

    def build(self, net: str, seed: int) -> nn.Module:
        """See `Digits.build`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return NETS[net]()

    def copy(self, model: nn.Module) -> nn.Module:
        """See `Digits.copy`."""
        return copy.deepcopy(model)

    def train(self, model: nn.Module, epochs: int, seed: int) -> None:
        """See `Digits.train`."""
        self._run_training_loop(model, self._make_optimizer(model), epochs, seed)

    def prune(self, model: nn.Module, config: secateur.PruningConfig, seed: int) -> PruningReport:
        """See `Digits.prune`."""
        optimizer = self._make_optimizer(model)
        pruner = secateur.prepare(model, config, optimizer=optimizer)
        self._run_training_loop(model, optimizer, self.hyperparameters.tuning_epochs, seed)
        report: PruningReport = pruner.finalize()
        return report

    @torch.no_grad()
    def predict(self, model: nn.Module) -> Any:
        """See `Digits.predict`."""
        return model(torch.from_numpy(self.test_images)).argmax(dim=1).numpy()

    def _make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.hyperparameters.learning_rate)

    def _run_training_loop(self, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, seed: int) -> None:
        """Train without any code for pruning: the optimizer prunes."""
        images, labels = torch.from_numpy(self.train_images), torch.from_numpy(self.train_labels)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=generator).split(self.hyperparameters.batch):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            self.on_epoch()
