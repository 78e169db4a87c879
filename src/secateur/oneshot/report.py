"""What a calibrated run did."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.results import Column, LayerResult, PruningReport

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

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table."""
        return (*LayerResult.columns, Column(">error", lambda row: self.errors[row.name], "{:.4f}"))

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        known = [error for error in self.errors.values() if error > 0]
        mean = math.exp(sum(map(math.log, known)) / len(known)) if known else 0.0
        return [
            *super(CalibratedReport, self).footer,
            f"By {self.solver} in {self.seconds:.1f} s, {self.solver_seconds:.1f} s of them in the solver. error: "
            f"share of a layer's output energy that is lost on the calibration data, geometric mean {mean:.4f}.",
        ]
