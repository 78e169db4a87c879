"""Measure the overhead of a pruner for a training step of an encoder of the size of BERT-mini, between mask updates.

Steps with and without a pruner alternate in one process (batch 8, sequence 128). The time in the hooks of the pruner is
also measured, which is more reliable on a noisy machine. Run it while no other program is running:

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step_overhead.py
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
from rich.console import Console
from torch import nn

import secateur
from _timing import measure_wall_seconds, parse_options
from secateur._table import Table

VOCABULARY, WIDTH, DEPTH, HEADS, CLASSES = 30_522, 256, 4, 4, 2
CASES: dict[str, dict[str, object]] = {
    "magnitude 4x1": {"criterion": "magnitude", "pattern": "4x1"},
    "magnitude 2:4": {"criterion": "magnitude", "pattern": "2:4"},
    "SNIP momentum 4x1": {"criterion": "snip_momentum", "pattern": "4x1"},
    "SNIP momentum 1x1": {"criterion": "snip_momentum", "pattern": "1x1"},
    "SNIP momentum 2:4": {"criterion": "snip_momentum", "pattern": "2:4"},
}
PRUNED_FROM = 2


class Encoder(nn.Module):
    """An encoder with the sizes of BERT-mini and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of shape (batch, classes)."""
        return self.classifier(self.encoder(self.embedding(tokens)).mean(1))


def prune_immediately(initial: float, target: float, progress: float) -> float:  # noqa: ARG001
    """Return the target at the first update, although more updates follow."""
    return target


class Steps:
    """Training steps of a copy of the model, with the seconds of each step in the hooks of the pruner."""

    def __init__(self, model: nn.Module, config: dict[str, object] | None) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.tokens = torch.randint(0, VOCABULARY, (8, 128))
        self.labels = torch.randint(0, CLASSES, (8,))
        self.in_hooks: list[float] = []
        self._add_timer("start", self.optimizer)
        if config:
            # The last update comes after the measurement, so scores are accumulated in every step.
            timing = {"start_step": 1, "pruning_frequency": 10_000, "end_step": 100_000}
            settings = config | timing | {"target_sparsity": 0.5, "sparsity_decay_type": prune_immediately}
            secateur.prepare(model, settings, optimizer=self.optimizer)
        self._add_timer("stop", self.optimizer)
        for _ in range(PRUNED_FROM):
            self()
        self.in_hooks.clear()

    def __call__(self) -> None:
        """Run one step."""
        nn.functional.cross_entropy(self.model(self.tokens), self.labels).backward()
        self._spent = 0.0
        self.optimizer.step()
        self.in_hooks.append(self._spent)
        self.optimizer.zero_grad()

    def _add_timer(self, event: str, optimizer: torch.optim.Optimizer) -> None:
        """Add a hook before or after those of the pruner. Hooks run in the order of their registration."""
        sign = -1.0 if event == "start" else 1.0

        def tick(*_: object) -> None:
            self._spent += sign * time.perf_counter()

        optimizer.register_step_pre_hook(tick)
        optimizer.register_step_post_hook(tick)


def main() -> None:
    arguments = parse_options(__doc__, rounds=30)
    model = Encoder()
    steps = {"no pruner": Steps(copy.deepcopy(model), None)}
    steps |= {name: Steps(copy.deepcopy(model), config) for name, config in CASES.items()}
    times = measure_wall_seconds(steps, arguments.rounds)
    plain = times["no pruner"]
    rows = []
    for name, seconds in times.items():
        inside = statistics.median(steps[name].in_hooks)
        row = [
            name,
            f"{seconds * 1e3:.0f}",
            f"{seconds / plain - 1:+.1%}",
            f"{inside * 1e3:.1f}",
            f"{inside / plain:.1%}",
        ]
        rows.append(row)
    title = f"One training step, {arguments.threads} threads, median of {arguments.rounds}"
    columns = ("pruner", ">ms", ">added", ">ms in hooks", ">of a step")
    Console().print(Table(title=title, columns=columns, rows=rows))


if __name__ == "__main__":
    main()
