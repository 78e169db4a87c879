"""Allocations: each says how much of every layer goes, so that the target is met over all of them."""

from __future__ import annotations

from secateur.oneshot.pytorch.allocation.base import ALLOCATIONS, Allocation, AllocationTask, register_allocation
from secateur.oneshot.pytorch.allocation.uniform import Uniform

__all__ = ["ALLOCATIONS", "Allocation", "AllocationTask", "Uniform", "register_allocation"]
