"""Networks, data and helpers for tests of sensitivity scans."""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import secateur
from tiny_models import bits


def make_stack(seed: int = 0) -> nn.Sequential:
    """Build three blocks in a stack, and an output layer that stays dense."""
    torch.manual_seed(seed)
    blocks = [nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Linear(8, 3)).eval()


def make_convolutions() -> nn.Sequential:
    """Build convolutions, one of them grouped and strided, without a stack of blocks."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, groups=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(72, 3)).eval()


def make_batches(*shape: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def make_tokens(count: int = 3, padding: int = 4) -> list[dict[str, torch.Tensor]]:
    """Return batches of tokens for a tiny language model, with padding at the left of every second row."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        tokens = torch.randint(1, 64, (2, 10), generator=generator)
        mask = torch.ones(2, 10, dtype=torch.long)
        tokens[1, :padding] = mask[1, :padding] = 0
        batches.append({"input_ids": tokens, "attention_mask": mask})
    return batches


def prune_alone(model: nn.Module, layer: str, pattern: str, sparsity: float, **options: Any) -> tuple[nn.Module, Any]:
    """Prune only one layer of a copy, and return the copy and the report."""
    pruned = copy.deepcopy(model)
    config = {"pattern": pattern, "target_sparsity": sparsity, "op_names": [re.escape(layer)]}
    return pruned, secateur.prune(pruned, config, **options)


def list_points(report: Any) -> list[tuple[str, Any]]:
    """Return all layers with all of their points."""
    return [(layer.name, point) for layer in report.layers for point in layer.points]


def record_outputs(model: nn.Module, module: str, run: Callable[[nn.Module], Any]) -> list[torch.Tensor]:
    """Return the outputs of a module while a function runs the model."""
    outputs: list[torch.Tensor] = []

    def record(_: Any, __: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).detach())

    handle = model.get_submodule(module).register_forward_hook(record)
    with torch.no_grad():
        run(model)
    handle.remove()
    return outputs


class Unchanged:
    """Asserts, at the end of a context, that a model is as at its start: bits, modes and hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def describe(self) -> Any:
        modes = [module.training for module in self.model.modules()]
        hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in self.model.modules()]
        return bits(self.model), modes, hooks, [weight.requires_grad for weight in self.model.parameters()]

    def __enter__(self) -> None:
        self.before = self.describe()

    def __exit__(self, *_: object) -> None:
        assert self.describe() == self.before
