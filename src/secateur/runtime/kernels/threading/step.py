"""A compiled kernel with everything it is called with except the caller's addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES
from secateur.runtime.kernels.threading.openmp import OpenMPJob
from secateur.runtime.kernels.threading.pool import get_scratch

__all__ = ["PlannedStep", "create_job"]


def create_job(function: Any, plans: npt.NDArray[np.int64], scratch_bytes: int) -> OpenMPJob:
    """Describe a step to an OpenMP team.

    Args:
        function: The compiled kernel.
        plans: Addresses of the plans, one per share.
        scratch_bytes: Scratch memory of a thread.
    """
    return OpenMPJob(
        kernel=ctypes.cast(function, ctypes.c_void_p),
        plans=plans.ctypes.data,
        shares=len(plans),
        stride=scratch_bytes + -scratch_bytes % CACHE_LINE_BYTES,
    )


class PlannedStep(NamedTuple):
    """A compiled kernel and its shares of a product.

    Attributes:
        function: The compiled kernel.
        plans: For each share, the address of the plan that the kernel reads.
        x: Offset in bytes of the step's first activation.
        y: Offset in bytes of the step's first result.
        scratch_bytes: Scratch memory of a thread.
        useful_threads: Number of threads worth waking.
        threads: Number of threads of the OpenMP team.
        job: The step as an OpenMP team reads it, without the caller's addresses.
        owners: Objects that own the memory that the addresses point to.
    """

    function: Callable[..., None]
    plans: tuple[int, ...]
    x: int
    y: int
    scratch_bytes: int
    useful_threads: int
    threads: int
    job: OpenMPJob
    owners: Any

    def run_share(self, plan: int, bias: int, x: int, y: int) -> None:
        """Run the share of one plan."""
        self.function(plan, bias, x + self.x, y + self.y, get_scratch(self.scratch_bytes) if self.scratch_bytes else 0)
