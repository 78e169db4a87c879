"""What all kernels have in common: how they are called, and how their work is numbered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter

__all__ = ["ARRAYS", "NUMBERS", "PARAMETERS", "FewRowsKernel", "Kernel", "begun", "each_panel"]

PARAMETERS = ("plan", "bias", "x", "y", "scratch")
"""Addresses that every kernel is called with: a `Plan`, the caller's arrays, and memory of its own."""

ARRAYS = ("starts", "columns", "values", "scales", "order")
"""Addresses that a plan begins with: the arrays of a layout."""

NUMBERS = ("batch", "inputs", "outputs", "begin", "end")
"""What follows: rows of the batch, the weight's shape, and which work to do."""


def begun() -> Emitter:
    """A kernel of which nothing is written but where its plan and arguments are, such as ``%starts`` and ``%batch``."""
    function = Emitter("run", dict.fromkeys(PARAMETERS, "ptr"))
    for number, name in enumerate((*ARRAYS, *NUMBERS)):
        kind = "ptr" if name in ARRAYS else "i64"
        function.let(f"load {kind}, ptr {function.at('%plan', 8 * number)}, align 8, !invariant.load !0", name)
    return function


@contextmanager
def each_panel(function: Emitter, units: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Repeat what is emitted inside for each panel from ``%begin`` to ``%end``, with its first unit and the end."""
    first = function.integer("sdiv", "%begin", units)
    last = function.integer("sdiv", function.add("%end", function.integer("sub", units, 1)), units)
    with function.loop(first, last) as number:
        done = function.multiply(number, units)
        start = function.larger(function.integer("sub", "%begin", done), 0)
        yield number, (start, function.smaller(function.integer("sub", "%end", done), units))


class Kernel(ABC):
    """The generator of one function.

    Its work is numbered panel by panel (rows of the batch that are done together), and within a panel by units of
    outputs; a call does a run of it. A unit's numbers do not depend on the run that it is in.
    """

    shares_per_thread: ClassVar[int] = 1
    """Runs of units that each thread is offered: more where a run costs nothing to begin."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Rows of the batch that are done together."""

    @abstractmethod
    def scratch_bytes(self, inputs: int) -> int:
        """Memory that it needs for a weight of so many inputs."""

    @abstractmethod
    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """What the units before each unit cost, and at the end all of them.

        Args:
            starts: What lies before each run of weights, as the layout counts.
            inputs: Of the weight.
        """

    @abstractmethod
    def emit(self) -> Emitter:
        """The function, called ``run``; see `begun`."""


class FewRowsKernel(Kernel):
    """For a few rows of the batch, all done together.

    Attributes:
        element: LLVM's type of activations.
        batch: Rows of the batch.
    """

    element: str
    batch: int

    shares_per_thread: ClassVar[int] = 2

    @property
    def width(self) -> int:
        """See `Kernel.width`: all rows, and never others."""
        return self.batch

    def scratch_bytes(self, inputs: int) -> int:  # noqa: ARG002
        """See `Kernel.scratch_bytes`: none."""
        return 0
