"""Sharded training with clipped and accumulated gradients, bfloat16, offloading and `torch.compile`."""

from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FSDPModule

from distributed.models import begin, check_equal, describe, train
from distributed.processes import run_ranks

CASES: dict[str, tuple[str, bool]] = {
    "clipped": ("sharded by layers", True),
    "bfloat16": ("bfloat16", False),
    "offloaded": ("offloaded", True),
    "compiled": ("compiled", False),
}
"""Name → how the model is sharded, and whether gradients are accumulated and clipped."""

CONFIG = {"pattern": "4x1"}
STEPS = range(4)
LIMIT = 300.0


class HalfPrecision(nn.Module):
    """Computes with copies of the weights in bfloat16, as `MixedPrecisionPolicy` does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> Any:
        copies = {name: weight.bfloat16() for name, weight in self.model.named_parameters()}
        return torch.func.functional_call(self.model, copies, (inputs.bfloat16(),))


def defer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Train with two batches per step, whose gradients are added up before they are sent."""
    for step in STEPS:
        optimizer.zero_grad()
        for part in range(2):
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(part == 1)
            generator = torch.Generator().manual_seed(2 * step + part)
            inputs, targets = torch.randn(8, 8, generator=generator), torch.randn(8, 2, generator=generator)
            (model(inputs) - targets).square().mean().backward()
        optimizer.step()


def run_sharded() -> dict[str, Any]:
    ends = {}
    for name, (division, is_careful) in CASES.items():
        trained = begin(CONFIG, division)
        train(trained.model, trained.optimizer, STEPS, careful=is_careful)
        ends[name] = describe(trained)
    ends["compiled graphs"] = counters["stats"]["unique_graphs"]
    trained = begin(CONFIG, "sharded by layers")
    defer(trained.model, trained.optimizer)
    return {**ends, "deferred": describe(trained)}


def run_whole(name: str) -> Any:
    trained = begin(CONFIG, "whole")
    if name == "deferred":
        defer(trained.model, trained.optimizer)
    else:
        model = HalfPrecision(trained.model) if name == "bfloat16" else trained.model
        train(model, trained.optimizer, STEPS, careful=CASES[name][1])
    return describe(trained)


def test_masks_are_those_of_one_process() -> None:
    for found in run_ranks(run_sharded, 2, limit=LIMIT):
        assert found["compiled graphs"] > 0
        for name in (*CASES, "deferred"):
            # The norms by which gradients are clipped are added up in another order.
            check_equal(found[name], run_whole(name), 1e-6 if name in {"clipped", "offloaded"} else 0.0)
