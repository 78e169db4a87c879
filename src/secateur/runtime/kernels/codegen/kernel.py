"""What all kernels have in common: how they are called, and how their work is numbered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter

__all__ = ["ARRAYS", "NUMBERS", "PARAMETERS", "Kernel", "SmallBatchKernel", "loop_over_panels", "start_kernel"]

PARAMETERS = ("plan", "bias", "x", "y", "scratch")
"""Addresses that a kernel takes: its plan, the caller's arrays, and scratch memory."""

ARRAYS = ("starts", "columns", "values", "scales", "order")
"""Addresses at the start of a plan: the arrays of a `WeightFormat`."""

NUMBERS = ("batch", "inputs", "outputs", "begin", "end")
"""What follows in a plan: the batch rows, the shape of the weight, and the first and last unit of the share."""


def start_kernel() -> Emitter:
    """Start a kernel that has only loaded its plan, so that ``%starts`` or ``%batch`` are defined."""
    function = Emitter("run", dict.fromkeys(PARAMETERS, "ptr"))
    for number, name in enumerate((*ARRAYS, *NUMBERS)):
        kind = "ptr" if name in ARRAYS else "i64"
        function.assign(f"load {kind}, ptr {function.gep('%plan', 8 * number)}, align 8, !invariant.load !0", name)
    return function


@contextmanager
def loop_over_panels(function: Emitter, units: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Emit the body for each panel from ``%begin`` to ``%end``; yields its number, and its first and last unit."""
    first = function.int_op("sdiv", "%begin", units)
    last = function.int_op("sdiv", function.add("%end", function.int_op("sub", units, 1)), units)
    with function.loop(first, last) as number:
        unit = function.mul(number, units)
        start = function.smax(function.int_op("sub", "%begin", unit), 0)
        yield number, (start, function.smin(function.int_op("sub", "%end", unit), units))


class Kernel(ABC):
    """Generates one function.

    Its work is numbered by panels (batch rows that are processed together), and within a panel by units of outputs. A
    call does a range of units. The results of a unit do not depend on the range.
    """

    shares_per_thread: ClassVar[int] = 1
    """Ranges that each thread is offered: more if starting a range costs nothing."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Batch rows of a panel."""

    @abstractmethod
    def get_scratch_bytes(self, inputs: int) -> int:
        """Return the scratch memory that a weight with this many inputs needs."""

    @abstractmethod
    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """Return the cost of all units before each unit, and the total at the end.

        Args:
            starts: `WeightFormat.starts`.
            inputs: Inputs of the weight.
        """

    @abstractmethod
    def emit(self) -> Emitter:
        """Generate the function ``run``; see `start_kernel`."""


class SmallBatchKernel(Kernel):
    """Base of kernels for small batches, which process all rows together.

    Attributes:
        activation_type: LLVM type of activations.
        batch: Batch rows.
    """

    activation_type: str
    batch: int

    shares_per_thread: ClassVar[int] = 2

    @property
    def width(self) -> int:
        """See `Kernel.width`: all rows."""
        return self.batch

    def get_scratch_bytes(self, inputs: int) -> int:  # noqa: ARG002
        """See `Kernel.get_scratch_bytes`: none."""
        return 0
