"""Measure the search for orders of channels: its gain on random matrices, and the perplexity of a pruned SmolLM2.

The first matrix is the one in the README of the authors' implementation, where 100 % is half of each row and the search
of the paper takes 60.7 s on a CPU for 35.5 %. The others contain absolute values of normal numbers. With a pattern,
SmolLM2-135M is pruned by `wanda` without and with `permute=True`; see `oneshot.py` for the packages that this requires.

    python benchmarks/permutation.py [2:4]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

import secateur
from secateur._table import Table
from secateur.patterns.channel_permutation import NMGoal, search_permutation


def list_matrices() -> dict[str, npt.NDArray[np.float64]]:
    """Return name → scores of shape (128, 64)."""
    normal = {f"normal, seed {seed}": np.random.default_rng(seed).standard_normal((128, 64)) for seed in range(3)}
    return {"published": np.random.RandomState(1).rand(128, 64)} | {
        name: abs(values) for name, values in normal.items()
    }


def measure_search(scores: npt.NDArray[np.float64]) -> tuple[str, str, str]:
    """Return what a search regains of half of each row, and of the better half of the matrix, and its CPU seconds."""
    goal = NMGoal(2, 4)
    before, columns = goal.measure(scores), scores.shape[1] // 2
    limits = np.sort(scores, axis=1)[:, columns:].sum(), np.sort(scores, axis=None)[scores.size // 2 :].sum()
    start = time.process_time()
    order = search_permutation(scores, goal)
    seconds = time.process_time() - start
    rows, single = ((goal.measure(scores[:, order]) - before) / (limit - before) for limit in limits)
    return f"{rows:.1%}", f"{single:.1%}", f"{seconds:.2f}"


def measure_model(pattern: str, *, permute: bool) -> tuple[str, str, str]:
    """Return the perplexity, the CPU seconds, and what is pruned less."""
    from _prose import compute_perplexity, read_calibration_tokens, read_held_out_tokens
    from oneshot import load_model

    model, tokenizer = load_model()
    batches = [{"input_ids": tokens[None]} for tokens in read_calibration_tokens(tokenizer, 32)]
    config: dict[str, Any] = {"pattern": pattern} | ({} if ":" in pattern else {"target_sparsity": 0.5})
    start = time.process_time()
    report: Any = secateur.prune(model, config, calibration=batches, solver="wanda", permute=permute)
    seconds = time.process_time() - start
    perplexity = compute_perplexity(model, read_held_out_tokens(tokenizer))
    return f"{perplexity:.1f}", f"{seconds:.0f}", " ".join(report.permutation.footer) if report.permutation else ""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*")
    patterns = parser.parse_args().patterns
    torch.set_num_threads(1)
    console = Console()
    rows = [(name, *measure_search(scores)) for name, scores in list_matrices().items()]
    columns = ("scores", ">of half of each row", ">of single weights", ">CPU, s")
    console.print(Table(title="What 2:4 regains", columns=columns, rows=rows))
    for pattern in patterns:
        rows = [(str(permute), *measure_model(pattern, permute=permute)) for permute in (False, True)]
        columns = ("permute", ">perplexity", ">CPU, s", "orders")
        console.print(Table(title=f"SmolLM2-135M at {pattern} by wanda", columns=columns, rows=rows))


if __name__ == "__main__":
    main()
