"""Allocations: decide how much of each layer is pruned, so that all layers together meet the target. Needs torch."""

from __future__ import annotations

from secateur._packages import require_packages

require_packages("torch", extra="torch")

from secateur.allocations.base import (  # noqa: E402 - after the check that torch is installed
    ALLOCATIONS,
    Allocation,
    AllocationTask,
    allocate,
    register_allocation,
)
from secateur.allocations.global_ranking import Global  # noqa: E402
from secateur.allocations.owl import OWL  # noqa: E402
from secateur.allocations.reported_sensitivity import ReportedSensitivity  # noqa: E402
from secateur.allocations.reported_shares import ReportedShares  # noqa: E402
from secateur.allocations.sensitivity import Sensitivity  # noqa: E402
from secateur.allocations.uniform import Uniform  # noqa: E402

__all__ = [
    "ALLOCATIONS",
    "OWL",
    "Allocation",
    "AllocationTask",
    "Global",
    "ReportedSensitivity",
    "ReportedShares",
    "Sensitivity",
    "Uniform",
    "allocate",
    "register_allocation",
]
