"""Compare `secateur.search` with the same sparsity in all layers, on small networks for handwritten digits.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/search.py --seeds 3

Both choose from the same patterns by the cross-entropy on half of the test images. The baseline tries each pattern with
14 sparsities, and the search has 40 trials in all. Its front is compared with every point of the front of the baseline:
the best loss with no more bytes. The other half of the images, which neither has seen, shows what is luck.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import nn

import secateur
from secateur._table import Table
from secateur.demo.digits import Hyperparameters
from secateur.demo.torch_digits import NETS, TorchDigits
from secateur.searching import Range, SearchReport

PATTERNS = ("1x1", "4x1")
LOSS = "cross-entropy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--sampler", choices=("tpe", "nsga2", "random"), default="tpe")
    parser.add_argument("--cost", default="bytes")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    totals = []
    for net in options.nets:
        for seed in range(options.seeds):
            rows, seconds = compare(net, seed, options)
            chosen, unseen = (sum(row[column + 1] < row[column] for row in rows) for column in (1, 3))
            totals.append([net, str(seed), f"{chosen} of {len(rows)}", f"{unseen} of {len(rows)}", *seconds])
            if seed == 0:
                show_sizes(net, rows, options.cost)
    columns = ("net", ">seed", ">smaller loss", ">on unseen images", ">s, same sparsity", ">s, search")
    Console(width=120).print(Table(title="Sizes at which the search is better", columns=columns, rows=totals))


def compare(net: str, seed: int, options: argparse.Namespace) -> tuple[list[tuple[float, ...]], list[str]]:
    """Return a row for each size of the baseline's front: cost, and both losses on both halves; and both times."""
    digits = TorchDigits(Hyperparameters(), lambda: None)
    model = digits.build(net, seed)
    digits.train(model, digits.hyperparameters.dense_epochs, seed)
    images, labels = torch.from_numpy(digits.test_images), torch.from_numpy(digits.test_labels)
    seen = make_objective(images[::2], labels[::2])
    unseen = make_objective(images[1::2], labels[1::2])
    data = [torch.from_numpy(digits.train_images[:512])]
    space = {"pattern": PATTERNS, "solver": "sparsegpt"}
    settings = {"calibration": data, "direction": "minimize", "cost": options.cost}
    start = time.perf_counter()
    even = secateur.search(
        model.eval(), seen, {**space, "sparsity": Range(0.3, 0.95, 0.05)}, sampler="grid", trials=100, **settings
    )
    middle = time.perf_counter()
    searched = secateur.search(
        model,
        seen,
        {**space, "sparsity": Range(0.0, 0.98), "groups": "layer"},
        sampler=options.sampler,
        trials=options.trials,
        seed=seed,
        **settings,
    )
    end = time.perf_counter()
    rows = [
        tuple(
            [point.cost]
            + [
                value
                for objective in (None, unseen)
                for report in (even, searched)
                for value in [measure(model, report, point.cost, objective, data)]
            ]
        )
        for point in even.front
    ]
    return rows, [f"{middle - start:.0f}", f"{end - middle:.0f}"]


def make_objective(images: torch.Tensor, labels: torch.Tensor) -> Callable[[nn.Module], float]:
    @torch.no_grad()
    def objective(model: nn.Module) -> float:
        return float(nn.functional.cross_entropy(model.eval()(images), labels))

    objective.__name__ = LOSS
    return objective


def measure(
    model: nn.Module, report: SearchReport, max_cost: float, objective: Callable[[nn.Module], float] | None, data: Any
) -> float:
    """Return the loss of the best trial within a cost, on the images of the search or by another objective."""
    fitting = [trial for trial in report.front if trial.cost <= max_cost]
    if not fitting:
        return float("inf")
    best = report.best(max_cost=max_cost)
    if objective is None:
        return best.quality
    pruned = copy.deepcopy(model)
    secateur.prune(pruned, best.config, calibration=data, **best.options)
    return objective(pruned)


def show_sizes(net: str, rows: list[tuple[float, ...]], cost: str) -> None:
    cells = [[f"{row[0]:,.0f}", *(f"{value:.4f}" for value in row[1:])] for row in rows]
    columns = (f">{cost}", ">same sparsity", ">search", ">same, unseen", ">search, unseen")
    Console(width=120).print(Table(title=f"{net}, seed 0: {LOSS}", columns=columns, rows=cells))


if __name__ == "__main__":
    main()
