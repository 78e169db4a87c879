"""Use the threads of an OpenMP runtime that the process has already loaded, such as torch's."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from statistics import median
from typing import Any

from secateur.runtime.kernels.codegen.target import compile_module

__all__ = ["OpenMPJob", "OpenMPTeam"]

MEASUREMENTS = 21
"""Number of repetitions of a time measurement."""


class OpenMPJob(ctypes.Structure):
    """A job for a team of threads: a kernel, its arguments, and the next share.

    Attributes:
        next: Index of the next share, which threads increment atomically. All other fields are read-only.
        kernel: Address of the kernel.
        plans: Address of an array of plan addresses, one per share.
        shares: Number of shares.
        workers: Number of threads that work, starting with the first. The others return immediately.
        bias, x, y: Addresses that the kernel takes.
        scratch: Address of the scratch memory of all workers.
        stride: Distance in bytes from the scratch memory of one worker to that of the next.
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

    libgomp restarts its threads when the size of the team changes, so use the same number of threads as other users of
    the runtime. A forked process has none of the threads, so running a job there never returns.

    Args:
        parallel: ``GOMP_parallel`` of libgomp, which the runtimes of LLVM and Intel also provide. It takes a function,
            its argument, the number of threads, and flags.
        number: Address of ``omp_get_thread_num``.
    """

    def __init__(self, parallel: Any, number: int) -> None:
        self._parallel, self._number = parallel, number

    @classmethod
    def from_library(cls, library: ctypes.CDLL) -> OpenMPTeam | None:
        """Return the team of the runtime that a library is linked to, or ``None`` if there is no supported runtime."""
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
            size: Number of threads in the team, including the caller.
        """
        job.number = self._number
        self._parallel(_compile_team_function(), ctypes.byref(job), size, 0)

    def measure_wake_seconds(self, size: int) -> float:
        """Measure the time to start and join threads that were active a moment ago."""
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
    index = [field for field, _ in OpenMPJob._fields_].index(name)
    return f"""
  %{name}.at = getelementptr i64, ptr %job, i64 {index}
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
