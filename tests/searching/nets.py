"""A small net, and objectives, for tests of searches. The test that kills a search runs this file as a program."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

SPACE = {"pattern": ["1x1", "4x1"], "sparsity": {"low": 0.2, "high": 0.9}, "groups": "layer"}


def build_net() -> nn.Sequential:
    """Build a net with three layers that can be pruned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = [(8, 16), (16, 16), (16, 16), (16, 4)]
        layers = [layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())]
        return nn.Sequential(*layers[:-1]).eval()


def make_inputs() -> torch.Tensor:
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


INPUTS = make_inputs()
EXPECTED = build_net()(INPUTS).detach()


@torch.no_grad()
def similarity(model: nn.Module) -> float:
    """How close the outputs are to those of the dense net; 0 is equal."""
    return -float((model(INPUTS) - EXPECTED).square().mean())


class Limited:
    """An objective that ends the process, or raises an exception, in one of its calls.

    Args:
        calls: Number of calls that succeed.
        end: Called instead of the next one.
    """

    __name__ = "similarity"

    def __init__(self, calls: int, end: Any) -> None:
        self.calls, self.end = calls, end

    def __call__(self, model: nn.Module) -> float:
        self.calls -= 1
        if self.calls == -1:
            self.end()
        return similarity(model)


def search_net(objective: Any = similarity, **options: Any) -> Any:
    import secateur

    settings = {"calibration": [INPUTS], "trials": 40, "storage": None} | options
    return secateur.search(build_net(), objective, settings.pop("space", SPACE), **settings)


if __name__ == "__main__":
    storage, calls = sys.argv[1], int(sys.argv[2])
    search_net(Limited(calls, lambda: os.kill(os.getpid(), signal.SIGKILL)), storage=Path(storage))
