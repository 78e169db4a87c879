"""The report of a calibrated run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.results import Column, LayerResult, PruningReport

__all__ = ["CalibratedReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedReport(PruningReport):
    """The result of pruning with calibration data, verified against masks and weights.

    Attributes:
        solver: The solver and the refiners.
        errors: Layer → relative error of its outputs on the calibration data, ``‖X (W − Ŵ)ᵀ‖² / ‖X Ŵᵀ‖²`` with dense
            weights Ŵ, before blocks or the whole model are refined. If only the norms of the inputs are measured,
            features are treated as uncorrelated.
        solver_seconds: Time spent in the solver and in layer refiners.
        seconds: Total time.
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
            f"Pruned by {self.solver} in {self.seconds:.1f} s, of which {self.solver_seconds:.1f} s in the solver. "
            f"The error is the share of a layer's output energy lost on the calibration data (geometric mean "
            f"{mean:.4f}).",
        ]
