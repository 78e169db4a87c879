"""Measure what distillation gains while a small character model of English documentation is pruned.

The text is that of the docstrings of scikit-learn, so it is the same on every machine with the same version. The dense
model is trained, and then pruned and fine-tuned towards the next character, towards the dense model's predictions, or
towards these and its hidden states.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/distillation.py
"""

from __future__ import annotations

import ast
import copy
import random
import statistics
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import secateur
from _timing import parse_options
from secateur._table import Table
from secateur.training.distillation import Distillation

CHARACTERS, CONTEXT, WIDTH, BATCH = 400_000, 10, 192, 128
DENSE_STEPS, STEPS, END_STEP = 4_000, 800, 400
LOSSES: dict[str, dict[str, Any] | None] = {
    "labels": None,
    "logits": {"temperature": 1.0, "weight": 1.0},
    "logits and hidden states": {"temperature": 1.0, "weight": 0.9, "hidden_weight": 0.3, "layers": ["3", "5"]},
}

Batch = tuple[torch.Tensor, torch.Tensor]


def read_text() -> str:
    """Read the docstrings of scikit-learn, in a fixed random order."""
    spec = find_spec("sklearn")
    assert spec is not None, "install scikit-learn"
    assert spec.submodule_search_locations is not None
    texts = []
    for path in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
        if "tests" not in path.parts:
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
            documented = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            texts += [text for node in documented if (text := ast.get_docstring(node))]
    random.Random(0).shuffle(texts)  # noqa: S311 - not for security
    return "\n\n".join(texts)[:CHARACTERS]


def encode(text: str) -> torch.Tensor:
    """Number the characters; 0 stands for rare ones."""
    known = sorted(character for character, count in Counter(text).items() if count > 20)
    numbers = {character: number for number, character in enumerate(known, start=1)}
    return torch.tensor([numbers.get(character, 0) for character in text])


def make_batch(text: torch.Tensor, starts: torch.Tensor) -> Batch:
    return torch.stack([text[starts + offset] for offset in range(CONTEXT)], dim=1), text[starts + CONTEXT]


def build(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(classes, 16),
        nn.Flatten(),
        nn.Linear(16 * CONTEXT, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, classes),
    )


def train(
    model: nn.Module, text: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int, seed: int, distil: Any = None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    for _ in range(steps):
        inputs, labels = make_batch(text, torch.randint(len(text) - CONTEXT - 1, (BATCH,), generator=generator))
        outputs = model(inputs)
        loss = nn.functional.cross_entropy(outputs, labels)
        (loss if distil is None else distil(loss, outputs, inputs)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def prune(
    dense: nn.Module, text: torch.Tensor, sparsity: float, settings: dict[str, Any] | None, seed: int
) -> nn.Module:
    model = copy.deepcopy(dense)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = {"target_sparsity": sparsity, "end_step": END_STEP, "excluded_op_names": ["6"]}
    pruner = secateur.prepare(model, config, optimizer)
    distil = None
    if settings is not None:
        student = {"student": model} if "layers" in settings else {}
        distil = Distillation(copy.deepcopy(dense).eval(), **settings, **student)
    train(model, text, optimizer, STEPS, seed, distil)
    pruner.finalize()
    return model


@torch.no_grad()
def compute_loss(model: nn.Module, batch: Batch) -> float:
    return nn.functional.cross_entropy(model(batch[0]), batch[1]).item()


def main() -> None:
    arguments = parse_options(__doc__, rounds=3)
    text = encode(read_text())
    split = len(text) * 9 // 10
    text, held_out = text[:split], text[split:]
    test = make_batch(held_out, torch.arange(0, len(held_out) - CONTEXT - 1, 2))
    dense = build(int(text.max()) + 1)
    train(dense, text, torch.optim.AdamW(dense.parameters(), lr=2e-3), DENSE_STEPS, seed=0)
    rows = [["0 %", "dense", f"{compute_loss(dense, test):.3f}"]]
    for sparsity in (0.8, 0.9):
        for name, settings in LOSSES.items():
            losses = [
                compute_loss(prune(dense, text, sparsity, settings, 100 + seed), test)
                for seed in range(arguments.rounds)
            ]
            rows.append([f"{sparsity:.0%}", name, f"{statistics.mean(losses):.3f}"])
    title = f"Loss on held-out text after {STEPS} steps with 4x1 pruning, mean of {arguments.rounds} runs"
    Console().print(Table(title=title, columns=(">sparsity", "trained towards", ">loss"), rows=rows))


if __name__ == "__main__":
    main()
