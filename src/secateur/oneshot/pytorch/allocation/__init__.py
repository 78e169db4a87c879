"""Allocations: each says how much of every layer goes, so that the target is met over all of them."""

from __future__ import annotations

from secateur.oneshot.pytorch.allocation.base import (
    ALLOCATIONS,
    Allocation,
    AllocationTask,
    allocate,
    register_allocation,
)
from secateur.oneshot.pytorch.allocation.global_ranking import Global
from secateur.oneshot.pytorch.allocation.owl import OWL
from secateur.oneshot.pytorch.allocation.sensitivity import Sensitivity
from secateur.oneshot.pytorch.allocation.uniform import Uniform

__all__ = [
    "ALLOCATIONS",
    "OWL",
    "Allocation",
    "AllocationTask",
    "Global",
    "Sensitivity",
    "Uniform",
    "allocate",
    "register_allocation",
]
