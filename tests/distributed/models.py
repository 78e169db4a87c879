"""Models that tests train in several processes, and how they are sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import secateur
from secateur.distributed.pytorch.ranks import Ranks
from secateur.training.pytorch import PytorchPruner

CONFIG: dict[str, Any] = {
    "target_sparsity": 0.5,
    "start_step": 1,
    "end_step": 3,
    "pruning_frequency": 1,
    "criterion": "snip_momentum",
}


def make_model() -> nn.Sequential:
    """Layers whose rows are divided unevenly, and one with few rows."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 36), nn.ReLU(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 2))


def shard(model: nn.Module, **options: Any) -> nn.Module:
    """Shard each layer, and the model."""
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def shard_hybrid(model: nn.Module) -> nn.Module:
    """Shard over pairs of processes, with copies of the pairs."""
    size = Ranks.join().size
    return shard(model, mesh=init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("copies", "shards")))


def shard_with_tensors(model: nn.Sequential) -> nn.Module:
    """Shard by columns and rows of matrices over pairs of processes, and over copies of the pairs if there are more."""
    size = Ranks.join().size
    mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("data", "tensors"))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, mesh["tensors"], plan)
    return shard(model, mesh=mesh["data"]) if size > 2 else model


def compile_layers(model: nn.Module) -> nn.Module:
    """Compile what each layer computes, without code generation, which takes seconds."""
    for layer in model.children():
        layer.forward = torch.compile(layer.forward, backend="aot_eager")
    return model


def leave(model: nn.Module) -> nn.Module:
    """Do not shard."""
    return model


DIVISIONS: dict[str, Callable[[Any], nn.Module]] = {
    "whole": leave,
    "sharded": fully_shard,
    "sharded by layers": shard,
    "hybrid": shard_hybrid,
    "tensors": shard_with_tensors,
    "bfloat16": lambda model: shard(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16)),
    "offloaded": lambda model: shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False)),
    "compiled": lambda model: shard(compile_layers(model)),
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01),
    "fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
    "foreach": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, foreach=True),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, *, careful: bool = False) -> None:
    """Train on the same data in every process, so that the number of processes does not matter.

    If `careful`, accumulate gradients of two batches, and clip them.
    """
    for step in steps:
        optimizer.zero_grad()
        for part in range(1 + careful):
            generator = torch.Generator().manual_seed(2 * step + part)
            inputs, targets = torch.randn(8, 8, generator=generator), torch.randn(8, 2, generator=generator)
            (model(inputs) - targets).square().mean().backward()
        if careful:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def to_whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


class Trained(NamedTuple):
    model: nn.Module
    optimizer: torch.optim.Optimizer
    pruner: PytorchPruner


def begin(config: dict[str, Any], division: str = "sharded", optimizer: str = "adamw") -> Trained:
    dense = make_model()
    if config.get("kind") == "pattern_lock":
        with torch.no_grad():
            for weight in dense.parameters():
                weight[::2] = 0
    model = DIVISIONS[division](dense)
    built = OPTIMIZERS[optimizer](model.parameters())
    return Trained(model, built, secateur.prepare(model, {**CONFIG, **config}, built))


def describe(trained: Trained) -> dict[str, Any]:
    """Return the whole masks and weights, and the numbers of the report, of a run that ends."""
    masks = {name: to_whole(mask) for name, mask in trained.pruner.masks.items()}
    sparsity = trained.pruner.sparsity
    report = trained.pruner.finalize()
    weights = {name: to_whole(weight) for name, weight in trained.model.named_parameters()}
    layers = [(layer.name, layer.units, layer.pruned_units, layer.pruned_weights) for layer in report.layers]
    return {"masks": masks, "weights": weights, "layers": layers, "sparsity": sparsity, "total": report.sparsity}


def check_equal(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Check that masks and reports are equal, and weights within a tolerance."""
    assert not isinstance(found, str), found
    assert not isinstance(expected, str), expected
    torch.testing.assert_close(found["masks"], expected["masks"])
    torch.testing.assert_close(found["weights"], expected["weights"], rtol=0, atol=tolerance)
    for key in ("layers", "sparsity", "total"):
        assert found[key] == expected[key]
