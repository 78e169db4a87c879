"""Distribute the target by a sensitivity report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from secateur.allocations.base import Allocation, AllocationTask
from secateur.masking.pytorch import ParameterWeight
from secateur.planning.sensitivity_counts import UnitBounds, count_by_sensitivity, refuse_other_model
from secateur.results import SensitivityReport

__all__ = ["ReportedSensitivity"]

DIGEST_LENGTH = 12
"""Number of hexadecimal digits."""


@dataclass(frozen=True, kw_only=True)
class ReportedSensitivity(Allocation):
    """Minimize the sum of the losses that `secateur.sensitivity` has measured.

    ``allocation=report`` is short for it. Losses are multiplied by ``loss_factor``, which makes the errors of layers
    comparable, and interpolated by powers of the sparsity.

    Attributes:
        report: The report, of this model.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> scan = secateur.sensitivity(model, inputs, patterns="1x1")
        >>> shares = secateur.allocations.ReportedSensitivity(report=scan)
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> report = secateur.prune(
        ...     model, config, calibration=inputs, solver="wanda", allocation=shares
        ... )
        >>> report.sparsity
        0.5
    """

    report: SensitivityReport = field(repr=False)
    metric: str = field(init=False)
    """What the report measured."""
    digest: str = field(init=False)
    """Start of the SHA-256 of the report's layers, which tells runs with different reports apart."""

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "nothing"

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", self.report.metric)
        text = json.dumps([layer.to_dict() for layer in self.report.layers])
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH])

    def check(self, task: AllocationTask) -> None:
        """See `Allocation.check`: the report must be of the same weights."""

        def compute_digest(layer: str) -> str:
            with task.load(layer):
                return ParameterWeight(layer, task.pattern).compute_digest()

        refuse_other_model(self.report, task.pattern, compute_digest)

    def counts(self, task: AllocationTask) -> dict[str, int]:
        """See `Allocation.counts`."""
        bounds = UnitBounds(lower=task.lower, upper=task.upper, total=task.total)
        return count_by_sensitivity(self.report, task.pattern, bounds)
