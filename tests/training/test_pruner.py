"""The torch pruner keeps the contract of pruners."""

from itertools import count

import pytest
import torch
from torch import nn

from secateur.training import pytorch
from tiny_models import mlp
from training.models import begin
from training.pruner_contract import Case, check_pruner


def start() -> Case:
    trial, numbers = begin(), count()

    def train(steps: int) -> None:
        trial.train(next(numbers) for _ in range(steps))

    def copy() -> nn.Module:
        model = mlp()
        for parameter in model.parameters():
            nn.init.ones_(parameter)
        return model

    def weights(model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: model.get_submodule(name).weight.detach() for name in trial.pruner.masks}

    return Case(trial.pruner, train, copy, lambda: nn.Sequential(nn.ReLU()), weights)


def test_contract() -> None:
    check_pruner(start)


def test_the_old_name_is_deprecated() -> None:
    with pytest.deprecated_call(match=r"Pruner is deprecated\. Use secateur\.training\.pytorch\.PytorchPruner"):
        assert pytorch.Pruner is pytorch.PytorchPruner
