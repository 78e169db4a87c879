"""Time saving and loading of packed models, compared with ``torch.save`` and ``torch.load`` of the dense state.

``python benchmarks/artifacts.py`` writes a model of 105 million weights to a temporary folder, once for each pattern
and type. Files are read from the page cache, so the times are those of unpacking and digests.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

import secateur
from _timing import measure_wall_seconds

SIDE, LAYERS = 2048, 25
CASES = (
    ("2:4", None, torch.bfloat16),
    ("2:4", None, torch.float32),
    ("4x1", 0.8, torch.float32),
    ("1x1", 0.9, torch.float32),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'model':20} {'dense MB':>8} {'packed':>6} {'save s':>8} {'load s':>8} {'torch.save':>10} {'torch.load':>10}"
    )
    for pattern, sparsity, dtype in CASES:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(LAYERS))).to(dtype)
        secateur.prune(
            model, {"pattern": pattern, "target_sparsity": sparsity, "pruning_scope": "local", "op_names": [".*"]}
        )
        with tempfile.TemporaryDirectory() as folder:
            measure(f"{pattern} {str(dtype).removeprefix('torch.')}", model, Path(folder), arguments.rounds)


def measure(name: str, model: nn.Module, folder: Path, rounds: int) -> None:
    packed, dense, empty = folder / "packed", folder / "dense.pt", copy.deepcopy(model)
    seconds = measure_wall_seconds(
        {
            "save": lambda: secateur.save(model, packed),
            "load": lambda: secateur.load(packed, empty),
            "torch.save": lambda: torch.save(model.state_dict(), dense),
            "torch.load": lambda: empty.load_state_dict(torch.load(dense, weights_only=True)),
        },
        rounds,
    )
    before = sum(weight.nbytes for weight in model.state_dict().values())
    after = sum(file.stat().st_size for file in packed.rglob("*") if file.is_file())
    times = " ".join(
        f"{seconds[key]:{width}.2f}"
        for key, width in (("save", 8), ("load", 8), ("torch.save", 10), ("torch.load", 10))
    )
    print(f"{name:20} {before / 1e6:8.0f} {after / before:6.3f} {times}", flush=True)


if __name__ == "__main__":
    main()
