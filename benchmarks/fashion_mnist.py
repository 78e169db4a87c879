"""Measure the accuracy on Fashion-MNIST after pruning during training, compared with training without pruning.

An MLP 784-512-512-256-10 is trained for three epochs (Adam 1e-3, batch 128) and then for three more, either dense or
with pruning from step 10 to 70 % of the steps, every 40 steps. The data are the four idx files of the Debian package
dataset-fashion-mnist. Several seeds are averaged.

    python benchmarks/fashion_mnist.py --data /usr/share/datasets/fashion-mnist --seeds 5
"""

from __future__ import annotations

import argparse
import copy
import gzip
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

import secateur
from secateur._table import Table

EPOCHS = 3
BATCH = 128
STEPS = EPOCHS * (60_000 // BATCH)
REFERENCE = {"4x1 90 %": 87.3, "4x1 95 %": 86.8, "1x1 95 %": 87.5, "2:4 50 %": 88.3, "dense": 88.0}
"""Accuracy of the pruner of Intel Neural Compressor with the same settings and one seed. Its 2:4 left 58.5 % zeros."""

CASES = {
    "4x1 90 %": {"pattern": "4x1", "target_sparsity": 0.9},
    "4x1 95 %": {"pattern": "4x1", "target_sparsity": 0.95},
    "1x1 95 %": {"pattern": "1x1", "target_sparsity": 0.95},
    "2:4 50 %": {"pattern": "2:4"},
}
TIMING = {"start_step": 10, "end_step": STEPS * 7 // 10, "pruning_frequency": 40}


class Data:
    """Images in [0, 1], flattened and centred, and labels."""

    def __init__(self, folder: Path) -> None:
        self.train = _images(folder / "train-images-idx3-ubyte.gz"), _labels(folder / "train-labels-idx1-ubyte.gz")
        self.test = _images(folder / "t10k-images-idx3-ubyte.gz"), _labels(folder / "t10k-labels-idx1-ubyte.gz")

    def batches(self, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of one epoch in a random order, without the incomplete batch."""
        images, labels = self.train
        order = torch.randperm(len(labels), generator=generator)
        for start in range(0, len(labels) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield images[chosen], labels[chosen]


def _images(path: Path) -> torch.Tensor:
    pixels = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16)
    return (torch.tensor(pixels).float().reshape(-1, 784) / 255 - 0.2860) / 0.3530


def _labels(path: Path) -> torch.Tensor:
    return torch.tensor(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=8)).long()


def build_model() -> nn.Sequential:
    """Build the MLP."""
    widths = [784, 512, 512, 256, 10]
    layers: list[nn.Module] = []
    for left, right in pairwise(widths):
        layers += [nn.Linear(left, right), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(model: nn.Module, data: Data, seed: int, config: dict[str, object] | None = None) -> float:
    """Train for three epochs, and return the accuracy on the test images in percent."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    pruner = secateur.prepare(model, config, optimizer=optimizer) if config else None
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for images, labels in data.batches(generator):
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    if pruner is not None:
        report = pruner.finalize()
        exact = sum(layer.pruned_units for layer in report.layers), sum(layer.units for layer in report.layers)
        if exact[0] != round(pruner.plan.patterns[0].target_sparsity * exact[1]):
            raise SystemExit(f"{exact[0]} of {exact[1]} units are pruned")
    with torch.no_grad():
        images, labels = data.test
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


def run(data: Data, seeds: int, extra: dict[str, object], progress: Callable[[str], None]) -> dict[str, list[float]]:
    """Measure the accuracy of each case for each seed."""
    accuracies: dict[str, list[float]] = {name: [] for name in ("before", "dense", *CASES)}
    for seed in range(seeds):
        torch.manual_seed(seed)
        start = build_model()
        accuracies["before"].append(train(start, data, seed))
        accuracies["dense"].append(train(copy.deepcopy(start), data, seed + 1000))
        for name, case in CASES.items():
            accuracies[name].append(train(copy.deepcopy(start), data, seed + 1000, TIMING | case | extra))
            progress(f"seed {seed} {name}: {accuracies[name][-1]:.2f}")
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config keys to override")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"{options.data} does not exist. Install dataset-fashion-mnist, or pass --data.")
    torch.set_num_threads(1)
    extra = dict(pair.split("=", 1) for pair in options.set)
    accuracies = run(Data(options.data), options.seeds, extra, lambda line: print(line, flush=True))
    rows = [
        [name, f"{statistics.mean(values):.2f}", f"{min(values):.2f} - {max(values):.2f}", str(REFERENCE.get(name, ""))]
        for name, values in accuracies.items()
    ]
    title = f"Fashion-MNIST test accuracy in percent, {options.seeds} seeds {' '.join(options.set)}"
    Console().print(Table(title=title, columns=("case", ">mean", ">range", ">reference"), rows=rows))


if __name__ == "__main__":
    main()
