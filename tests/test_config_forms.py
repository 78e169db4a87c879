"""Tests of the forms in which a configuration is accepted: an object, a mapping, or the pattern alone."""

from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ConfigError, UnknownNameError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


FORMS = ["2:4", {"pattern": "2:4"}, secateur.PruningConfig(pattern="2:4")]


@pytest.mark.parametrize("config", FORMS)
def test_every_function_takes_every_form(config: Any) -> None:
    batches = [torch.randn(8, 8, generator=torch.Generator().manual_seed(0))]
    assert [row.config.pattern for row in secateur.plan(net(), config).layers if row.config] == ["2:4", "2:4"]
    assert secateur.prune(net(), config).sparsity == 0.5
    assert secateur.prune(net(), config, calibration=batches, solver="wanda").sparsity == 0.5
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    model(batches[0]).sum().backward()
    optimizer.step()
    assert pruner.finalize().sparsity == 0.5


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("2:5x", UnknownNameError, "Unknown pattern '2:5x'"),
        ("pruning.yaml", ConfigError, r"must be a pattern .* found 'pruning.yaml'.*PruningConfig.from_yaml"),
        (0.5, ConfigError, r"or a pattern such as '2:4', found float"),
        (None, ConfigError, "found NoneType"),
    ],
)
def test_other_forms_are_errors(config: Any, error: type[Exception], message: str) -> None:
    for call in (secateur.plan, secateur.prune, secateur.prepare):
        with pytest.raises(error, match=message):
            call(net(), config)
