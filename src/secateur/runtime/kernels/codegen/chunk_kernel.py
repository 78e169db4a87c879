"""What kernels for panels have in common that take features a piece at a time.

The activations of a piece stay in the innermost cache: where each weight needs a load of activations for every product
or two, only that cache is fast enough. The sums of a chunk of outputs wait in memory between two pieces.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.kernel import Kernel, begun
from secateur.runtime.kernels.codegen.panel import Access, Panel
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, SIZES, first_sum, spread
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES, STRIP

__all__ = ["STRIP_BYTES", "ChunkKernel", "Part", "emit_ahead", "emit_products"]


STRIP_BYTES = STRIP * FLOAT_BYTES
"""Of a weight of each, as floats."""


class Part(NamedTuple):
    """A piece of a chunk.

    Attributes:
        chunk: Number of the chunk.
        piece: Number of the piece.
        pieces: How many there are.
        sums: Where the sums of the chunk's first output wait; its others follow.
    """

    chunk: str
    piece: str
    pieces: str
    sums: str


class ChunkKernel(Kernel):
    """Whose unit is a chunk of outputs.

    Attributes:
        chunk: Outputs of a chunk.
        piece: Features of a piece.
        panel: How activations lie.
        stored: LLVM's type of the weights.
    """

    chunk: int
    piece: int
    panel: Panel
    stored: str

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.panel.width

    def scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.scratch_bytes`: the panel's, the sums of a chunk, and a strip's weights of a piece as floats."""
        sums = self.chunk * self.panel.feature_bytes
        return self.panel.scratch_bytes(inputs) + sums + self.piece * STRIP * FLOAT_BYTES

    def pieces(self, inputs: int) -> int:
        """How many pieces so many features are."""
        return -(-inputs // self.piece)

    @abstractmethod
    def emit_part(self, access: Access, part: Part) -> None:
        """Add the products of a part to the sums."""

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        access = self.panel.access(function, STRIP, self.stored)
        sums = access.room
        chunks = function.integer("sdiv", function.add("%outputs", self.chunk - 1), self.chunk)
        pieces = function.integer("sdiv", function.add("%inputs", self.piece - 1), self.piece)
        with access.emit_runs(chunks) as bounds, function.loop(*bounds) as chunk:
            first = function.multiply(chunk, self.chunk)
            left = function.smaller(function.integer("sub", "%outputs", first), self.chunk)
            access.emit_prefetch(first, left)
            self._emit_bias(access, sums, first)
            with function.loop(0, pieces) as piece:
                self.emit_part(access, Part(chunk, piece, pieces, sums))
            access.emit_results(sums, first, left)
        return function

    def features(self, access: Access, part: Part) -> str:
        """The base of a part's features."""
        return access.base(access.function.multiply(part.piece, self.piece))

    def room(self, function: Emitter, part: Part) -> str:
        """Memory for a strip's weights of a piece as floats."""
        return function.at(part.sums, self.chunk * self.panel.feature_bytes)

    def waiting(self, access: Access, sums: str, output: str) -> tuple[list[str], list[str]]:
        """Where the sums of an output of the chunk wait, and variables that begin with them."""
        function, kind, size = access.function, access.kind, access.vector_bytes
        place = function.at(sums, function.multiply(output, access.feature_bytes))
        places = [function.at(place, number * size) for number in range(access.vectors)]
        return places, [function.variable(kind, function.load(kind, some, size)) for some in places]

    def emit_waiting(self, access: Access, places: list[str], totals: list[str]) -> None:
        """Put variables back to where they wait."""
        for place, total in zip(places, totals, strict=True):
            access.function.store(access.kind, access.function.get(access.kind, total), place, access.vector_bytes)

    def _emit_bias(self, access: Access, sums: str, first: str) -> None:
        """Begin the sums of a chunk; those behind the last output like its."""
        function, size = access.function, access.vector_bytes
        last = function.integer("sub", "%outputs", 1)
        with function.loop(0, self.chunk) as output:
            channel = function.smaller(function.add(first, output), last)
            begin = first_sum(function, self.stored, channel, access.lanes)
            place = function.at(sums, function.multiply(output, access.feature_bytes))
            for number in range(access.vectors):
                function.store(access.kind, begin, function.at(place, number * size), size)


def emit_products(access: Access, where: tuple[str, str, str], totals: list[list[str]]) -> None:
    """Add floats times the same activations to the sums of as many outputs.

    Args:
        access: The way to activations.
        where: Floats, which of them is the first, and where the activations are.
        totals: Variables, by outputs and then by vectors.
    """
    function, kind, (floats, first, place) = access.function, access.kind, where
    weights = [spread(function, floats, function.add(first, number), access.lanes) for number in range(len(totals))]
    for number, some in enumerate(access.loaded(place)):
        for weight, variables in zip(weights, totals, strict=True):
            total = function.get(kind, variables[number])
            function.put(kind, function.fused(access.lanes, weight, some, total), variables[number])


def emit_ahead(function: Emitter, stored: str, bounds: tuple[str, str], distance: str | int) -> None:
    """Ask for weights that come later, as many as a run has.

    Args:
        function: Where to.
        stored: LLVM's type of the weights.
        bounds: First sixteen weights of the run, and behind the last.
        distance: From these to those, in sixteens.
    """
    start, stop = bounds
    size = STRIP * SIZES[stored]
    with function.loop(function.add(start, distance), function.add(stop, distance), CACHE_LINE_BYTES // size) as slot:
        function.prefetch(function.at("%values", function.multiply(slot, size)), level=2)
