"""Compare one-shot pruning of SmolLM2-135M by several processes with one process, each with one thread.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/distributed_oneshot.py

The model is calibrated on sequences of 512 tokens of English prose and evaluated on 32 others, as in `oneshot.py`.
The time is that of `secateur.prune`, without loading the model. On a busy machine, compare the CPU time of the rank
that needs most. ``--blocks`` and ``--without-perplexity`` make a run shorter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

import secateur
from _prose import compute_perplexity, read_calibration_tokens, read_held_out_tokens
from oneshot import METHODS, load_model
from secateur._table import Table


def prune(options: argparse.Namespace) -> None:
    """Prune in this process, together with the others if there are any, and print what it measured as JSON."""
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    model, tokenizer = load_model()
    batches = [{"input_ids": tokens[None]} for tokens in read_calibration_tokens(tokenizer, options.sequences)]
    config: dict[str, Any] = {"pattern": options.pattern}
    if options.blocks is not None:
        config["op_names"] = [rf"model\.layers\.{block}\..*" for block in range(options.blocks)]
    if ranks > 1:
        store = dist.FileStore(str(options.store), ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
        dist.barrier()
    start, cpu_start = time.perf_counter(), time.process_time()
    method = METHODS[options.method]
    report: Any = secateur.prune(model, config, calibration=batches, solver=method.solver, refine=method.refine)
    found = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu_start, "perplexity": None}
    if rank == 0:
        found["solver"] = report.solver_seconds
        masks = {name: weight == 0 for name, weight in model.named_parameters() if weight.ndim > 1}
        torch.save(masks, options.store.with_name(f"masks-{ranks}"))
        if not options.without_perplexity:
            found["perplexity"] = compute_perplexity(model, read_held_out_tokens(tokenizer))
    print(json.dumps(found))
    if ranks > 1:
        dist.destroy_process_group()


def measure(ranks: int, folder: Path) -> dict[str, Any]:
    """Prune in so many processes, and return what rank 0 measured, and the largest CPU time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
    command = [sys.executable, __file__, *sys.argv[1:], "--store", str(folder / f"store-{ranks}")]
    processes = [
        subprocess.Popen(  # noqa: S603 - this file
            command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"pruning in {ranks} processes failed")
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {**found[0], "cpu": max(part["cpu"] for part in found)}


def compare_masks(folder: Path, ranks: int) -> float:
    """Return the share of weights that only one of the two runs pruned."""
    one, several = (torch.load(folder / f"masks-{number}") for number in (1, ranks))
    different = sum(int((mask != several[name]).sum()) for name, mask in one.items())
    return different / sum(mask.numel() for mask in one.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--method", choices=METHODS, default="sparsegpt")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--blocks", type=int, help="prune only so many blocks; by default, all")
    parser.add_argument("--without-perplexity", action="store_true")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.store is not None:
        prune(options)
        return
    with TemporaryDirectory() as folder:
        counts = (1, options.ranks)
        found = {ranks: measure(ranks, Path(folder)) for ranks in counts}
        difference = compare_masks(Path(folder), options.ranks)
    rows = [
        (
            str(ranks),
            f"{row['seconds']:.1f}",
            f"{found[1]['seconds'] / row['seconds']:.2f}",
            f"{row['solver']:.1f}",
            f"{row['cpu']:.1f}",
            "" if row["perplexity"] is None else f"{row['perplexity']:.2f}",
        )
        for ranks, row in found.items()
    ]
    console = Console()
    columns = (">processes", ">total, s", ">speed-up", ">solver, s", ">CPU, s", ">perplexity")
    console.print(Table(title=f"SmolLM2-135M, {options.method}, {options.pattern}", columns=columns, rows=rows))
    console.print(f"Pruned in one of the two only: {difference:.4%} of the weights.")


if __name__ == "__main__":
    main()
