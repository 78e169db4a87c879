"""Training ranks globally by default, and empties no layer."""

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur
from secateur.results import PruningReport

CONFIG: dict[str, Any] = {"pattern": "1xchannel", "target_sparsity": 0.75, "end_step": 4, "pruning_frequency": 1}


class Residual(nn.Module):
    """A small residual network; a block can be emptied without breaking the path around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            for block in self.blocks[1:3]:
                block.weight *= 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(functional.relu(x))
        return self.head(x.mean(dim=(2, 3)))


def train(config: Any) -> PruningReport:
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 6, 6)).square().mean().backward()
        optimizer.step()
    return pruner.finalize()


@pytest.mark.parametrize("source", ["mapping", "yaml"])
def test_no_layer_is_emptied_by_default(source: str) -> None:
    config = secateur.PruningConfig.from_dict(CONFIG)
    report = train(CONFIG if source == "mapping" else secateur.PruningConfig.from_yaml(config.to_yaml()))
    pruned = {layer.name: layer.pruned_units for layer in report.layers}
    assert sum(pruned.values()) == 60
    assert pruned["blocks.1"] == pruned["blocks.2"] == 15
    assert len(set(pruned.values())) > 1


def test_a_maximum_of_one_empties_layers_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    report = train(CONFIG | {"max_sparsity_ratio_per_op": 1.0})
    assert [layer.name for layer in report.layers if layer.sparsity == 1] == ["blocks.1", "blocks.2"]
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    (message,) = [text for text in messages if "lost more than 95 % of the weights" in text]
    assert "'blocks.1' (100.00%)" in message
    assert "'blocks.2' (100.00%)" in message


def test_zeros_that_are_only_kept_are_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Residual()
    secateur.prune(model, CONFIG | {"pruning_scope": "global", "max_sparsity_ratio_per_op": 1.0})
    caplog.clear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    secateur.prepare(model, {"kind": "pattern_lock"}, optimizer=optimizer).finalize()
    assert "lost more than" not in caplog.text
