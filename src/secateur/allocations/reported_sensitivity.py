"""Distribute the target by a sensitivity report."""

from __future__ import annotations

from dataclasses import dataclass, field

from secateur.allocations.reported import ReportedAllocation, digest_records
from secateur.results import SensitivityReport

__all__ = ["ReportedSensitivity"]


@dataclass(frozen=True, kw_only=True)
class ReportedSensitivity(ReportedAllocation):
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", self.report.metric)
        object.__setattr__(self, "digest", digest_records(self.report.layers))

    @property
    def source(self) -> SensitivityReport:
        """See `ReportedAllocation.source`."""
        return self.report
