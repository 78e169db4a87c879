"""The threads of an OpenMP runtime that the process has already, such as torch's."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from statistics import median
from typing import Any

__all__ = ["Job", "Team"]

ROUNDS = 21
"""Of a measurement."""


class Job(ctypes.Structure):
    """What the threads of a team read: a kernel, its arguments, and which share is next.

    Attributes:
        next: Number of the next share. All threads count it up; nothing else changes.
        kernel: Address of the kernel's function.
        plans: Address of the addresses of plans, one for each share.
        shares: How many there are.
        workers: Threads that may work, from the first; the others go home.
        bias, x, y: Addresses, as the kernel takes them.
        scratch: Address of memory for each worker.
        stride: Bytes from one worker's memory to the next one's.
        number: Address of the function that tells a thread its number.
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


class Team:
    """Threads that start together on one job, and end it together.

    libgomp makes new threads when one team is not as large as the last: ask for as many as the others who use the
    runtime do. A process that was forked has none of the threads, and asking for them never ends there.

    Args:
        parallel: libgomp's ``GOMP_parallel``, which LLVM's and Intel's runtimes have too: a function, what to call it
            with, threads, and flags.
        number: Address of ``omp_get_thread_num``.
    """

    def __init__(self, parallel: Any, number: int) -> None:
        self._parallel, self._number = parallel, number

    @classmethod
    def of(cls, library: ctypes.CDLL) -> Team | None:
        """The team of the runtime that a library is linked with; ``None``: there is none, or not of this kind."""
        try:
            parallel, number = library.GOMP_parallel, library.omp_get_thread_num
        except AttributeError:
            return None
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return cls(parallel, ctypes.cast(number, ctypes.c_void_p).value or 0)

    def run(self, job: Job, size: int) -> None:
        """Do all shares of a job, and return when they are done.

        Args:
            job: What to do.
            size: Threads of the team, the one that asks included.
        """
        job.number = self._number
        self._parallel(_code(), ctypes.byref(job), size, 0)

    def waking(self, size: int) -> float:
        """Seconds that it takes to start threads that worked right before, and to end together."""
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            self.run(Job(), size)
            seconds.append(time.perf_counter() - start)
        return median(seconds)


@cache
def _code() -> int:
    """Address of what each thread of a team does."""
    from secateur.runtime.kernels.codegen.target import machine_code

    return machine_code(TEXT, "team")


def _loaded(name: str, kind: str) -> str:
    """A field of the job, read."""
    place = [field for field, _ in Job._fields_].index(name)
    return f"""
  %{name}.at = getelementptr i64, ptr %job, i64 {place}
  %{name} = load {kind}, ptr %{name}.at"""


READ = {"workers": "i64", "shares": "i64"} | dict.fromkeys(("kernel", "plans", "bias", "x", "y", "scratch"), "ptr")

TEXT = f"""
define void @team(ptr %job) nounwind {{{_loaded("number", "ptr")}{_loaded("stride", "i64")}\
{"".join(_loaded(name, kind) for name, kind in READ.items())}
  %own.32 = call i32 %number()
  %own = zext i32 %own.32 to i64
  %distance = mul i64 %own, %stride
  %memory = getelementptr i8, ptr %scratch, i64 %distance
  %is.worker = icmp slt i64 %own, %workers
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
