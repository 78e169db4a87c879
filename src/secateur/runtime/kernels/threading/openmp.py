"""Threads of the OpenMP runtime that the process has loaded already, such as torch's."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from statistics import median
from typing import Any

from secateur.runtime.kernels.codegen.target import compile_module

__all__ = ["OpenMPJob", "OpenMPTeam"]

MEASUREMENTS = 21
"""Repetitions of a time measurement."""


class OpenMPJob(ctypes.Structure):
    """What the threads of a team read: a kernel, its arguments, and the next share.

    Attributes:
        next: Number of the next share, which threads increment atomically. Nothing else changes.
        kernel: Address of the kernel.
        plans: Address of an array of plan addresses, one per share.
        shares: Number of shares.
        workers: Number of threads that work, starting with the first; the others return at once.
        bias, x, y: Addresses that the kernel takes.
        scratch: Address of the scratch memory of all workers.
        stride: Bytes from the scratch memory of one worker to that of the next.
        number: Address of ``omp_get_thread_num``.
    """

    _fields_ = (
        ("next", ctypes.c_int64),
        ("kernel", ctypes.c_void_p),
        ("plans", ctypes.c_void_p),
        ("shares", ctypes.c_int64),
        ("workers", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("number", ctypes.c_void_p),
    )


class OpenMPTeam:
    """A team of OpenMP threads that start a job together and finish it together.

    libgomp restarts its threads when the size of the team changes, so ask for as many threads as the other users of the
    runtime do. A forked process has none of the threads, and running a job in it never returns.

    Args:
        parallel: ``GOMP_parallel`` of libgomp, which LLVM's and Intel's runtimes provide too. It takes a function, its
            argument, the number of threads, and flags.
        number: Address of ``omp_get_thread_num``.
    """

    def __init__(self, parallel: Any, number: int) -> None:
        self._parallel, self._number = parallel, number

    @classmethod
    def from_library(cls, library: ctypes.CDLL) -> OpenMPTeam | None:
        """Return the team of the runtime that a library is linked with, or ``None`` if it has no such runtime."""
        try:
            parallel, number = library.GOMP_parallel, library.omp_get_thread_num
        except AttributeError:
            return None
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return cls(parallel, ctypes.cast(number, ctypes.c_void_p).value or 0)

    def run(self, job: OpenMPJob, size: int) -> None:
        """Run all shares of a job, and return when they are done.

        Args:
            job: The job.
            size: Threads of the team, including the caller.
        """
        job.number = self._number
        self._parallel(_compile_team_function(), ctypes.byref(job), size, 0)

    def measure_wake_seconds(self, size: int) -> float:
        """Measure how long it takes to start and join threads that have just worked."""
        seconds = []
        for _ in range(MEASUREMENTS):
            start = time.perf_counter()
            self.run(OpenMPJob(), size)
            seconds.append(time.perf_counter() - start)
        return median(seconds)


@cache
def _compile_team_function() -> int:
    """Return the address of the function that each thread of a team runs."""
    return compile_module(TEAM_FUNCTION, "team")


def _load_field(name: str, kind: str) -> str:
    """Return LLVM code that loads a field of the job."""
    place = [field for field, _ in OpenMPJob._fields_].index(name)
    return f"""
  %{name}.at = getelementptr i64, ptr %job, i64 {place}
  %{name} = load {kind}, ptr %{name}.at"""


FIELD_TYPES = {"workers": "i64", "shares": "i64"} | dict.fromkeys(
    ("kernel", "plans", "bias", "x", "y", "scratch"), "ptr"
)

TEAM_FUNCTION = f"""
define void @team(ptr %job) nounwind {{{_load_field("number", "ptr")}{_load_field("stride", "i64")}\
{"".join(_load_field(name, kind) for name, kind in FIELD_TYPES.items())}
  %thread.32 = call i32 %number()
  %thread = zext i32 %thread.32 to i64
  %distance = mul i64 %thread, %stride
  %memory = getelementptr i8, ptr %scratch, i64 %distance
  %is.worker = icmp slt i64 %thread, %workers
  br i1 %is.worker, label %take, label %end
take:
  %share = atomicrmw add ptr %job, i64 1 monotonic
  %is.left = icmp slt i64 %share, %shares
  br i1 %is.left, label %work, label %end
work:
  %plan.at = getelementptr ptr, ptr %plans, i64 %share
  %plan = load ptr, ptr %plan.at
  call void %kernel(ptr %plan, ptr %bias, ptr %x, ptr %y, ptr %memory)
  br label %take
end:
  ret void
}}
"""
