"""Define compiled kernels with all of their arguments except the addresses of the caller."""

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
    """Create the job that runs a step on an OpenMP team.

    Args:
        function: The compiled kernel.
        plans: Addresses of the plans, one per share.
        scratch_bytes: Size of the scratch memory of a thread.
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
        x: Offset of the step's first activation, in bytes.
        y: Offset of the step's first result, in bytes.
        scratch_bytes: Size of the scratch memory of a thread.
        useful_threads: Number of threads that make the step faster.
        threads: Number of threads of the OpenMP team.
        job: The job for an OpenMP team, without the addresses of the caller.
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
