"""What was pruned, by weights and by units."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from secateur._table import Table
from secateur._wording import format_count
from secateur.config import PruningConfig

__all__ = ["LayerResult", "PruningReport"]

logger = logging.getLogger(__name__)

NOTABLE = 0.005
"""Difference between the shares of units and of weights that a report points out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """One pruned layer.

    Attributes:
        name: The layer's name in the model.
        pattern: Its pattern specification.
        shape: Its weight as stored.
        weights: Weights in it.
        pruned_weights: Weights that the mask prunes; each is exactly zero.
        units: Units that its weight is tiled into.
        pruned_units: Units of which no weight is left.
    """

    name: str
    pattern: str
    shape: tuple[int, ...]
    weights: int
    pruned_weights: int
    units: int
    pruned_units: int

    @property
    def sparsity(self) -> float:
        """Share of weights pruned, in [0, 1]."""
        return self.pruned_weights / self.weights

    def cells(self) -> tuple[str, ...]:
        """The row as a person reads it."""
        return (
            self.name,
            "×".join(str(size) for size in self.shape),
            self.pattern,
            f"{self.sparsity:.2%}",
            f"{self.pruned_weights:,} of {self.weights:,}",
            f"{self.pruned_units:,} of {self.units:,}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningReport:
    """The result of a run, verified against masks and weights.

    Attributes:
        layers: Every pruned layer.
        dense: Layers left dense → why.
        step: Optimizer steps taken.
        last_step: Step at which the target was to be reached.
        model_weights: Parameters of the whole model, shared ones counted once.
        configs: The configurations of the run: one for all layers of equal settings.
    """

    layers: tuple[LayerResult, ...]
    dense: dict[str, str]
    step: int
    last_step: int
    model_weights: int
    configs: tuple[PruningConfig, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of weights pruned over all pruned layers, in [0, 1]."""
        return sum(layer.pruned_weights for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def unit_sparsity(self) -> float:
        """Share of units pruned over all pruned layers, in [0, 1]."""
        return sum(layer.pruned_units for layer in self.layers) / sum(layer.units for layer in self.layers)

    @property
    def model_sparsity(self) -> float:
        """Share of the whole model's parameters pruned, in [0, 1]."""
        return sum(layer.pruned_weights for layer in self.layers) / self.model_weights

    @property
    def is_complete(self) -> bool:
        """Whether the run reached its last step, and so its target."""
        return self.step >= self.last_step

    def warn_if_incomplete(self) -> None:
        """Log a warning if the run ended before its target."""
        if not self.is_complete:
            logger.warning(
                "finalize() after step %d, but the schedule ends at step %d: sparsity is %.4f so far. "
                "Train longer, or set a smaller end_step.",
                self.step,
                self.last_step,
                self.sparsity,
            )

    def table(self) -> Table:
        """The report for a person."""
        return Table(
            title="Pruned",
            columns=("layer", ">shape", "pattern", ">sparsity", ">weights pruned", ">units pruned"),
            rows=[layer.cells() for layer in self.layers],
            footer=self._footer(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        totals = {"sparsity": self.sparsity, "unit_sparsity": self.unit_sparsity, "model_sparsity": self.model_sparsity}
        plain = {name: value for name, value in asdict(self).items() if name != "configs"}
        return plain | totals | {"is_complete": self.is_complete}

    def __str__(self) -> str:
        return self.table().text()

    def _footer(self) -> list[str]:
        lines = [
            f"In all {self.sparsity:.2%} of the weights in {format_count(len(self.layers), 'layer')}, "
            f"{self.model_sparsity:.2%} of the model; {format_count(len(self.dense), 'other layer')} left dense."
        ]
        sizes = {layer.weights // layer.units for layer in self.layers}
        if len(sizes) > 1 and abs(self.unit_sparsity - self.sparsity) > NOTABLE:
            lines.append(
                "Units differ in size: the target is a share of units, and "
                f"{self.unit_sparsity:.2%} of them are pruned."
            )
        if not self.is_complete:
            lines.append(f"The target was not reached: stopped at step {self.step} of {self.last_step}.")
        return lines
