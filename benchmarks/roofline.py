"""Plot the speed of a dense and a pruned layer against the number of rows, with the limits of the machine.

``python benchmarks/roofline.py --out docs/images/roofline.svg`` measures on one thread and writes the plot.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from torch import nn

import secateur
from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.pytorch import SparseLinear
from secateur.runtime.pytorch.timing import measure_medians

SIDE = 4096
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
PATTERN, SPARSITY = "4x1", 0.8
COLORS = {"dense": "#666666", "pruned": "#2e7d32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("roofline.svg"), help="file to write the plot to")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds to spend on each number of rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    speeds = measure_speeds(arguments.seconds)
    for rows, dense, pruned in zip(ROWS, speeds["dense"], speeds["pruned"], strict=True):
        print(f"{rows:5} rows: dense {dense:7.1f} GFLOP/s, pruned {pruned:7.1f} GFLOP/s, speed-up {pruned / dense:.2f}")
    plot_speeds(speeds, arguments.out)


def measure_speeds(seconds: float) -> dict[str, list[float]]:
    """Measure the speed for each number of rows, in GFLOP/s of the dense layer."""
    torch.manual_seed(0)
    dense, pruned = nn.Linear(SIDE, SIDE).eval(), nn.Linear(SIDE, SIDE).eval()
    secateur.prune(pruned, {"pattern": PATTERN, "target_sparsity": SPARSITY})
    sparse = SparseLinear(pruned, PackedMatrix.from_dense(pruned.weight.detach().numpy(), PATTERN))
    speeds: dict[str, list[float]] = {"dense": [], "pruned": []}
    with torch.no_grad():
        for rows in ROWS:
            inputs = torch.randn(rows, SIDE)
            calls = [lambda inputs=inputs: dense(inputs), lambda inputs=inputs: sparse(inputs)]
            for name, time in zip(speeds, measure_medians(calls, torch.device("cpu"), seconds), strict=True):
                speeds[name].append(2e-9 * rows * SIDE * SIDE / time)
    return speeds


def plot_speeds(speeds: dict[str, list[float]], path: Path) -> None:
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "roofline"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.3, 4.2), layout="constrained")
    slope, peak = speeds["dense"][0], max(speeds["dense"])
    for name, gain in (("dense", 1.0), ("pruned", 1 / (1 - SPARSITY))):
        roof = [gain * min(slope * rows, peak) for rows in ROWS]
        label = "limit of memory and arithmetic" + ("" if name == "dense" else f", × {gain:.0f}")
        axes.plot(ROWS, roof, "--", color=COLORS[name], linewidth=1, label=f"{name}: {label}")
        axes.plot(ROWS, speeds[name], "o-", color=COLORS[name], label=f"{name}: measured")
    axes.set(xscale="log", yscale="log", xlabel="rows multiplied", ylabel="GFLOP/s of the dense layer")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_title(f"Linear {SIDE}×{SIDE}, float32, {PATTERN} at {SPARSITY:.0%}, one thread", fontsize=11)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.legend(fontsize=9, frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
