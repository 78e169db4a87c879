"""Define the base class of kernels, their calling convention, and the numbering of their work."""

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
"""Addresses that a kernel takes: its plan, the arrays of the caller, and scratch memory."""

ARRAYS = ("starts", "columns", "values", "scales", "order")
"""Addresses at the start of a plan: the arrays of a `WeightFormat`."""

NUMBERS = ("batch", "inputs", "outputs", "begin", "end")
"""Numbers after the arrays in a plan: batch rows, shape of the weight, and range of units of the share."""


def start_kernel() -> Emitter:
    """Start a kernel with the instructions that load its plan into values such as ``%starts`` and ``%batch``."""
    function = Emitter("run", dict.fromkeys(PARAMETERS, "ptr"))
    for number, name in enumerate((*ARRAYS, *NUMBERS)):
        kind = "ptr" if name in ARRAYS else "i64"
        function.assign(f"load {kind}, ptr {function.gep('%plan', 8 * number)}, align 8, !invariant.load !0", name)
    return function


@contextmanager
def loop_over_panels(function: Emitter, units: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Emit the body for each panel from ``%begin`` to ``%end``, and yield its index and the range of its units."""
    first = function.int_op("sdiv", "%begin", units)
    last = function.int_op("sdiv", function.add("%end", function.int_op("sub", units, 1)), units)
    with function.loop(first, last) as number:
        unit = function.mul(number, units)
        start = function.smax(function.int_op("sub", "%begin", unit), 0)
        yield number, (start, function.smin(function.int_op("sub", "%end", unit), units))


class Kernel(ABC):
    """Generates the function that multiplies a packed weight.

    The work is split into panels, which are batch rows that are processed together, and each panel into units of
    outputs. Units are numbered over all panels. A call computes a range of units, and the results of a unit do not
    depend on the range.
    """

    shares_per_thread: ClassVar[int] = 1
    """Number of ranges per thread. Use more than one if starting a range has no overhead."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of batch rows in a panel."""

    @abstractmethod
    def get_scratch_bytes(self, inputs: int) -> int:
        """Return the size of the scratch memory, in bytes, for a weight with this number of inputs."""

    @abstractmethod
    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """Return the total cost of all units before each unit, and of all units at the end.

        Args:
            starts: `WeightFormat.starts`.
            inputs: Number of inputs of the weight.
        """

    @abstractmethod
    def emit(self) -> Emitter:
        """Generate the function ``run``. See `start_kernel`."""


class SmallBatchKernel(Kernel):
    """Base class of kernels for small batches, which process all rows together.

    Attributes:
        activation_type: LLVM type of activations.
        batch: Number of batch rows.
    """

    activation_type: str
    batch: int

    shares_per_thread: ClassVar[int] = 2

    @property
    def width(self) -> int:
        """See `Kernel.width`. A panel has all rows."""
        return self.batch

    def get_scratch_bytes(self, inputs: int) -> int:  # noqa: ARG002
        """See `Kernel.get_scratch_bytes`. None is needed."""
        return 0
