"""One kernel with all that it is called with but the caller's addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES
from secateur.runtime.kernels.threading.openmp import Job
from secateur.runtime.kernels.threading.pool import scratch

__all__ = ["PlannedStep", "job_of"]


def job_of(function: Any, plans: npt.NDArray[np.int64], memory: int) -> Job:
    """What a team is told of a step: the kernel's function, the addresses of plans, and bytes that a thread needs."""
    return Job(
        kernel=ctypes.cast(function, ctypes.c_void_p),
        plans=plans.ctypes.data,
        shares=len(plans),
        stride=memory + -memory % CACHE_LINE_BYTES,
    )


class PlannedStep(NamedTuple):
    """A kernel, and its shares of one product.

    Attributes:
        function: The kernel's function.
        plans: For each share, the address of a plan as the kernel reads it.
        x: Bytes from the first activation to the first of this step.
        y: Bytes from the first result to the first of this step.
        memory: Bytes that each thread needs.
        useful: Threads that are worth their waking up.
        threads: Threads that there are.
        job: The same for a team, without the addresses.
        held: What addresses point to.
    """

    function: Callable[..., None]
    plans: tuple[int, ...]
    x: int
    y: int
    memory: int
    useful: int
    threads: int
    job: Job
    held: Any

    def run(self, plan: int, bias: int, x: int, y: int) -> None:
        """Do one share."""
        self.function(plan, bias, x + self.x, y + self.y, scratch(self.memory) if self.memory else 0)
