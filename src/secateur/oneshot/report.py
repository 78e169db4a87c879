"""What a calibrated run did."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur._table import Table
from secateur.results import PruningReport

__all__ = ["CalibratedReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedReport(PruningReport):
    """The result of pruning with calibration data, verified against masks and weights.

    Attributes:
        solver: The solver and what repaired its result.
        errors: Layer → what its outputs lost on the calibration data,
            ``‖X (W − Ŵ)ᵀ‖² / ‖X Wᵀ‖²``, before a block or the whole model was
            repaired. Where only the norms of the inputs were measured, features count as uncorrelated.
        solver_seconds: Time in the solver and in the repair of single layers.
        seconds: Time in all.
    """

    solver: str
    errors: dict[str, float]
    solver_seconds: float
    seconds: float

    def table(self) -> Table:
        """The report for a person."""
        # Not super(): a dataclass with slots is another class than the one that its methods see.
        plain = PruningReport.table(self)
        known = [error for error in self.errors.values() if error > 0]
        mean = math.exp(sum(map(math.log, known)) / len(known)) if known else 0.0
        rows = [(*row, f"{self.errors[layer.name]:.4f}") for row, layer in zip(plain.rows, self.layers, strict=True)]
        footer = [
            *plain.footer,
            f"By {self.solver} in {self.seconds:.1f} s, {self.solver_seconds:.1f} s of them in the solver. error: "
            f"share of a layer's output energy that is lost on the calibration data, geometric mean {mean:.4f}.",
        ]
        return Table(title=plain.title, columns=(*plain.columns, ">error"), rows=rows, footer=footer)
