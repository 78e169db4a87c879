"""The report of a calibrated run."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace

from secateur._wording import format_list
from secateur.results import Column, LayerResult, PruningReport, Summary
from secateur.results.permutation_report import PermutationReport
from secateur.results.records import Record

__all__ = ["CalibratedReport", "Phase"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase(Record):
    """A part of a run.

    Attributes:
        name: What was done.
        seconds: The time it took; 0 if an interrupted run had done it before.
        remark: How it went, if there is more to say.
    """

    name: str
    seconds: float
    remark: str = ""

    def __str__(self) -> str:
        remark = f" ({self.remark})" if self.remark else ""
        return f"{self.seconds:.1f} s for {self.name}{remark}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CalibratedReport(PruningReport):
    """The result of pruning with calibration data, verified against masks and weights.

    Attributes:
        solver: The solver and the refiners.
        errors: Layer → relative error of its outputs on the calibration data, ``‖X (W − Ŵ)ᵀ‖² / ‖X Ŵᵀ‖²`` with dense
            weights Ŵ, before blocks or the whole model are refined. If only the norms of the inputs are measured,
            features are treated as uncorrelated. The errors of a layer that reads several groups of
            units are added. Layers whose inputs were not measured, or whose outputs were zero,
            have none.
        blind: Layer that reads removed units and was not repaired → why its inputs were not measured.
        magnitude_reasons: Layer that was pruned by magnitude, not by the solver → why its inputs were not measured.
        solver_seconds: Time spent in the solver and in layer refiners.
        seconds: Total time.
        data_sha256: Digest of the calibration data, in hexadecimal.
        phases: Where the time went.
        permutation: Which channels were reordered before; ``None``: they were not to be.
    """

    solver: str
    errors: dict[str, float]
    solver_seconds: float
    seconds: float
    magnitude_reasons: dict[str, str] = field(default_factory=dict)
    blind: dict[str, str] = field(default_factory=dict)
    data_sha256: str = field(default="", compare=False)
    phases: tuple[Phase, ...] = field(default=(), compare=False)
    permutation: PermutationReport | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table."""
        return (*LayerResult.columns, Column(">error", lambda row: self.errors.get(row.name, "unknown"), _format_error))

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
            *([f"Time: {', '.join(map(str, self.phases))}."] if len(self.phases) > 1 else []),
            *(self.permutation.footer if self.permutation else []),
            *(
                f"Pruned by magnitude: {layers}: {reason}."
                for reason, layers in _group_by_reason(self.magnitude_reasons).items()
            ),
            *(f"Not repaired: {layers}: {reason}." for reason, layers in _group_by_reason(self.blind).items()),
        ]

    def summarize(self) -> Summary:
        """See `PruningReport.summarize`; also the solver, and what each layer lost."""
        summary = super(CalibratedReport, self).summarize()
        notes = {name: f"pruned by magnitude: {reason}" for name, reason in self.magnitude_reasons.items()}
        notes |= {name: f"not repaired: {reason}" for name, reason in self.blind.items()}
        layers = [
            replace(layer, error=self.errors.get(layer.name), note=notes.get(layer.name)) for layer in summary.layers
        ]
        time = f"{self.seconds:.1f} s, of which {self.solver_seconds:.1f} s in the solver"
        facts = {"Solver": self.solver, "Time": "; ".join([time, *map(str, self.phases)])}
        if self.permutation:
            facts["Order of channels"] = " ".join(self.permutation.footer)
        digests = {"calibration data": self.data_sha256} if self.data_sha256 else {}
        return replace(summary, facts=facts | summary.facts, layers=tuple(layers), digests=digests)

    def warn_of_magnitude(self) -> None:
        """Log one warning for each reason why inputs are unknown, which names the layers."""
        for reason, layers in _group_by_reason(self.magnitude_reasons).items():
            logger.warning("Pruned by magnitude, not by the solver: %s: %s.", layers, reason)
        for reason, layers in _group_by_reason(self.blind).items():
            logger.warning("Not repaired after units were removed: %s: %s.", layers, reason)


def _group_by_reason(layers: dict[str, str]) -> dict[str, str]:
    """Return each reason → its layers, as text."""
    return {
        reason: format_list([repr(name) for name, value in layers.items() if value == reason])
        for reason in dict.fromkeys(layers.values())
    }


def _format_error(error: float | str) -> str:
    return error if isinstance(error, str) else f"{error:.4f}"
