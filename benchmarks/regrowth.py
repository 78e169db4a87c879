"""Compare ways to train a sparse network in equal steps: RigL, SET, SR-STE, and pruning step by step from a dense one.

LeNet-300-100 is trained on Fashion-MNIST from new weights for a number of epochs (Adam, batch 128, learning rate
decayed along a cosine). Each pixel is standardized: without that, neurons die, and sparse networks lose most. RigL
exchanges weights every 200 steps and SET every 100 steps until 75 % of the steps, and SR-STE chooses masks every 10
steps until then. The iterative run starts dense and prunes from step 10 to 70 % of the steps, every 40 steps. All runs
of a seed start with the same weights and see the same batches. The data are the four idx files of the Debian package
dataset-fashion-mnist.

    python benchmarks/regrowth.py --data /usr/share/datasets/fashion-mnist
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import secateur
from fashion_mnist import BATCH, Data
from secateur._table import Table

WIDTHS = (784, 300, 100, 10)

MIN_DEVIATION = 0.05
"""Smallest standard deviation of a pixel in [0, 1] by which it is divided."""


def list_cases(steps: int) -> dict[str, dict[str, Any] | None]:
    """Return case → configuration; ``None``: dense."""
    exchange = {"end_step": steps * 3 // 4, "start_step": 100, "pruning_frequency": 100}
    iterative = {"end_step": steps * 7 // 10, "start_step": 10, "pruning_frequency": 40, "criterion": "magnitude"}
    kinds: dict[str, dict[str, Any]] = {
        "iterative": iterative,
        "rigl": exchange | {"kind": "rigl", "start_step": 200, "pruning_frequency": 200, "regrow_fraction": 0.5},
        "set": exchange | {"kind": "set"},
    }
    cases: dict[str, dict[str, Any] | None] = {"dense": None}
    for target in (0.9, 0.95):
        for kind, settings in kinds.items():
            cases[f"1x1 {target:.0%} {kind}"] = {"pattern": "1x1", "target_sparsity": target} | settings
    kinds["sr_ste"] = {"kind": "sr_ste", "end_step": steps * 3 // 4}
    return cases | {f"2:4 {kind}": {"pattern": "2:4"} | settings for kind, settings in kinds.items()}


def standardize_pixels(data: Data) -> None:
    """Give each pixel mean 0 and standard deviation 1; pixels that hardly vary are divided by 0.05 of the range."""
    train, test = data.train[0], data.test[0]
    lowest, span = train.min(), train.max() - train.min()
    for images in (train, test):
        images.sub_(lowest).div_(span)
    mean, deviation = train.mean(dim=0), train.std(dim=0).clamp_min(MIN_DEVIATION)
    for images in (train, test):
        images.sub_(mean).div_(deviation)


def build_model() -> nn.Sequential:
    """Build LeNet-300-100."""
    layers = [module for left, right in pairwise(WIDTHS) for module in (nn.Linear(left, right), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def train(model: nn.Module, data: Data, options: argparse.Namespace, seed: int, config: dict[str, Any] | None) -> float:
    """Train, and return the accuracy on the test images in percent."""
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate, fused=True)
    steps = options.epochs * (len(data.train[1]) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pruner = secateur.prepare(model, config, optimizer) if config else None
    generator = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs):
        for images, labels in data.batches(generator):
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    if pruner is not None:
        report, plan = pruner.finalize(), pruner.plan
        units, pruned = sum(one.units for one in report.layers), sum(one.pruned_units for one in report.layers)
        if pruned != round(plan.patterns[0].target_sparsity * units):
            raise SystemExit(f"{pruned} of {units} units are pruned")
    images, labels = data.test
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


def measure(data: Data, options: argparse.Namespace, seed: int) -> Iterator[tuple[str, float]]:
    """Yield each wanted case, and its accuracy."""
    torch.manual_seed(seed)
    start = build_model()
    for name, config in list_cases(options.epochs * (len(data.train[1]) // BATCH)).items():
        if re.search(options.only, name):
            yield name, train(copy.deepcopy(start), data, options, seed, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--only", default="", metavar="REGEX", help="only cases whose name matches")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"{options.data} does not exist. Install dataset-fashion-mnist, or pass --data.")
    torch.set_num_threads(1)
    data, accuracies = Data(options.data), dict[str, list[float]]()
    standardize_pixels(data)
    for seed in range(options.seeds):
        for name, accuracy in measure(data, options, seed):
            accuracies.setdefault(name, []).append(accuracy)
            print(f"seed {seed} {name}: {accuracy:.2f}", flush=True)
    rows = [
        [name, f"{statistics.mean(values):.2f}", f"{min(values):.2f} - {max(values):.2f}"]
        for name, values in accuracies.items()
    ]
    title = (
        f"Fashion-MNIST test accuracy in percent, {options.epochs} epochs, learning rate {options.rate}, "
        f"{options.seeds} seeds"
    )
    Console().print(Table(title=title, columns=("case", ">mean", ">range"), rows=rows))


if __name__ == "__main__":
    main()
