"""Measure the time and memory to compute the masks of 28 million weights in 24 layers with global ranking.

The input is a score per weight (float32, in torch tensors), the output a boolean per weight. For comparison, the same
run times a copy of the scores, and two common ways to find a threshold in a concatenated copy, which do not compute
masks. Run it while no other program is running:

    OMP_WAIT_POLICY=PASSIVE python benchmarks/masks.py
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from rich.console import Console

from _timing import measure_wall_seconds, parse_options
from secateur._table import Table
from secateur.patterns import BasePattern, get_pattern

LAYERS = 24
SHAPE = (1024, 1152)
CASES = {
    "1x1": 0.9,
    "4x1": 0.9,
    "1x16": 0.9,
    "16x16": 0.9,
    "1xchannel": 0.5,
    "channelx1": 0.5,
    "2:4": 0.5,
    "2:4 partial": 0.3,
    "4:8": 0.5,
}
REFERENCE = {"1x1": 112.0, "4x1": 60.0, "2:4": 40.0}
"""Seconds of the pruner of Intel Neural Compressor, measured once on a machine of this size."""


def create_patterns(modules: dict[str, torch.nn.Module]) -> dict[str, BasePattern]:
    """Create the patterns to time."""
    return {
        name: get_pattern({"pattern": name.split()[0], "target_sparsity": target}, modules)
        for name, target in CASES.items()
    }


def measure_extra_bytes(work: Callable[[], dict[str, torch.Tensor]]) -> int:
    """Measure the peak memory in addition to scores and masks."""
    tracemalloc.start()
    masks = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - sum(mask.numel() for mask in masks.values())


def main() -> None:
    arguments = parse_options(__doc__, rounds=7)
    scores = {f"layer{index}": torch.randn(SHAPE).abs() for index in range(LAYERS)}
    joined = torch.cat([score.flatten() for score in scores.values()])
    count = int(0.9 * joined.numel())
    ours = create_patterns({name: torch.nn.Linear(SHAPE[1], SHAPE[0], device="meta") for name in scores})
    baselines = {
        "clone() of the scores": joined.clone,
        "torch.kthvalue, no masks": partial(joined.kthvalue, count),
        "numpy.partition, no masks": partial(np.partition, joined.numpy(), count),
    }
    runs = {name: partial(pattern.masks, scores) for name, pattern in ours.items()}
    half = ours["1x1"].masks(scores, 0.5)
    runs["1x1, half already pruned"] = partial(ours["1x1"].masks, scores, 0.9, half)
    times = measure_wall_seconds(baselines | runs, arguments.rounds)
    clone = times["clone() of the scores"]
    rows = [
        [
            name,
            f"{seconds * 1e3:.0f}",
            f"{seconds / clone:.2f}",
            f"{measure_extra_bytes(runs[name]) / 2**20:.0f}" if name in runs else "",
            f"{REFERENCE[name] / seconds:,.0f}×" if name in REFERENCE else "",
        ]
        for name, seconds in times.items()
    ]
    columns = ("masks", ">ms", ">clones", ">extra MiB", ">faster than the reference")
    settings = f"{arguments.threads} threads, median of {arguments.rounds}"
    title = f"{joined.numel():,} weights, {LAYERS} layers, global, {settings}"
    Console().print(Table(title=title, columns=columns, rows=rows))


if __name__ == "__main__":
    main()
