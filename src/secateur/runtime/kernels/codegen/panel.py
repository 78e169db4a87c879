"""How kernels for many rows come to their activations, and where their results go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, spread

__all__ = ["Access", "Panel"]


class Panel(ABC):
    """Rows of the batch that are done together, a vector or several of them for each feature.

    Attributes:
        lanes: Rows in a vector.
        vectors: Vectors of a feature.
    """

    lanes: int
    vectors: int

    @property
    def width(self) -> int:
        """Rows."""
        return self.lanes * self.vectors

    @property
    def feature_bytes(self) -> int:
        """Of a feature, or of an output, for all rows."""
        return self.width * FLOAT_BYTES

    @abstractmethod
    def scratch_bytes(self, inputs: int) -> int:
        """Memory that it needs for a weight of so many inputs."""

    @abstractmethod
    def access(self, function: Emitter, outputs: int, stored: str) -> Access:
        """What writes the way to activations and results into a function.

        Args:
            function: Where to.
            outputs: How many are written together at most.
            stored: LLVM's type of the weights: of int8, results still lack their scale and bias.
        """


class Access(ABC):
    """The way to a panel's activations and results within one function; see `Panel.access`."""

    def __init__(self, function: Emitter, panel: Panel, outputs: int, stored: str) -> None:
        self.function, self.outputs = function, outputs
        self.lanes, self.vectors, self.feature_bytes = panel.lanes, panel.vectors, panel.feature_bytes
        self.kind, self.vector_bytes = vector("float", panel.lanes), panel.lanes * FLOAT_BYTES
        self._is_scaled = stored == "i8"

    @abstractmethod
    def emit_runs(self, units: str) -> AbstractContextManager[tuple[str, str]]:
        """Repeat what is emitted inside for each panel from ``%begin`` to ``%end``, with its first unit and the end."""

    @abstractmethod
    def base(self, feature: str) -> str:
        """What `place` counts from: a feature."""

    @abstractmethod
    def place(self, base: str, number: str) -> str:
        """Where the activations of the `number`-th feature behind a base are."""

    @abstractmethod
    def loaded(self, place: str) -> list[str]:
        """The activations at a place, vector by vector."""

    @property
    @abstractmethod
    def room(self) -> str:
        """Memory behind what the panel itself takes."""

    @abstractmethod
    def emit_prefetch(self, first: str, count: str) -> None:
        """Ask for where results will be written, so that they need not wait for it."""

    @abstractmethod
    def emit_results(self, memory: str, first: str, count: str) -> None:
        """Write results to where they belong.

        Args:
            memory: Where they are kept, output by output.
            first: The first output.
            count: How many.
        """

    def emit_keeping(self, memory: str, sums: Sequence[Sequence[str]], slot: str) -> None:
        """Keep variables, by outputs and vectors, as those from the output `slot` on."""
        function = self.function
        place = function.at(memory, function.multiply(slot, self.feature_bytes))
        for output, totals in enumerate(sums):
            for number, total in enumerate(totals):
                goal = function.at(place, output * self.feature_bytes + number * self.vector_bytes)
                function.store(self.kind, function.get(self.kind, total), goal, self.vector_bytes)

    def result(self, place: str, channel: str, align: int) -> str:
        """A vector of an output's results, which are kept at a place."""
        function = self.function
        total = function.load(self.kind, place, align)
        if not self._is_scaled:
            return total
        last = function.smaller(channel, function.integer("sub", "%outputs", 1))
        scale, bias = (spread(function, f"%{name}", last, self.lanes) for name in ("scales", "bias"))
        return function.fused(self.lanes, total, scale, bias)
