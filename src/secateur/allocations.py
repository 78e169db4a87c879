"""Allocations, which share a target out over layers from calibration data; needs torch."""

from __future__ import annotations

from secateur._packages import require_packages

require_packages("torch", extra="torch")

from secateur.oneshot.pytorch.allocation import (  # noqa: E402 - says what is missing first
    ALLOCATIONS,
    OWL,
    Allocation,
    AllocationTask,
    Global,
    Sensitivity,
    Uniform,
    register_allocation,
)

__all__ = [
    "ALLOCATIONS",
    "OWL",
    "Allocation",
    "AllocationTask",
    "Global",
    "Sensitivity",
    "Uniform",
    "register_allocation",
]
