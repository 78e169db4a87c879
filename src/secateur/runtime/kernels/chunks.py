"""What kernels for panels have in common that take features a piece at a time.

The activations of a piece stay in the innermost cache: where each weight needs a load of activations for every product
or two, only that cache is fast enough. The sums of a chunk of outputs wait in memory between two pieces.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from secateur.runtime.kernels.emitter import Emitter, vector
from secateur.runtime.kernels.kernel import Kernel, begun, panels
from secateur.runtime.kernels.turning import FLOAT_BYTES, Panel, Staged, emit_results, first_sum, spread

__all__ = ["STRIP", "ChunkKernel", "Part", "emit_products"]

STRIP = 16
"""Outputs that are written together, a line of the cache; chunks are whole strips."""


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
        panel: How activations are packed.
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
        """See `Kernel.scratch_bytes`: a panel, the sums of a chunk, and a strip's weights of a piece as floats."""
        return (inputs + self.chunk) * self.panel.feature_bytes + self.piece * STRIP * FLOAT_BYTES

    def pieces(self, inputs: int) -> int:
        """How many pieces so many features are."""
        return -(-inputs // self.piece)

    @abstractmethod
    def emit_part(self, function: Emitter, part: Part) -> None:
        """Add the products of a part to the sums."""

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        staged = Staged(function, self.panel, STRIP, self.stored)
        sums = function.at("%scratch", function.multiply("%inputs", self.panel.feature_bytes))
        chunks = function.integer("sdiv", function.add("%outputs", self.chunk - 1), self.chunk)
        pieces = function.integer("sdiv", function.add("%inputs", self.piece - 1), self.piece)
        with panels(function, self.panel, chunks) as run, function.loop(run.start, run.stop) as chunk:
            first = function.multiply(chunk, self.chunk)
            left = function.smaller(function.integer("sub", "%outputs", first), self.chunk)
            staged.emit_prefetch((run.row, run.rows), (first, left))
            self._emit_bias(function, sums, first)
            with function.loop(0, pieces) as piece:
                self.emit_part(function, Part(chunk, piece, pieces, sums))
            emit_results(function, staged, sums, (run.row, run.rows, first, left))
        return function

    def features(self, function: Emitter, part: Part) -> str:
        """Where the activations of a part are."""
        return function.at("%scratch", function.multiply(part.piece, self.piece * self.panel.feature_bytes))

    def room(self, function: Emitter, part: Part) -> str:
        """Memory for a strip's weights of a piece as floats."""
        return function.at(part.sums, self.chunk * self.panel.feature_bytes)

    def waiting(self, function: Emitter, sums: str, output: str) -> tuple[list[str], list[str]]:
        """Where the sums of an output of the chunk wait, and variables that begin with them."""
        kind, size = vector("float", self.panel.lanes), self.panel.lanes * FLOAT_BYTES
        place = function.at(sums, function.multiply(output, self.panel.feature_bytes))
        places = [function.at(place, number * size) for number in range(self.panel.vectors)]
        return places, [function.variable(kind, function.load(kind, some, size)) for some in places]

    def emit_waiting(self, function: Emitter, places: list[str], totals: list[str]) -> None:
        """Put variables back to where they wait."""
        kind, size = vector("float", self.panel.lanes), self.panel.lanes * FLOAT_BYTES
        for place, total in zip(places, totals, strict=True):
            function.store(kind, function.get(kind, total), place, size)

    def _emit_bias(self, function: Emitter, sums: str, first: str) -> None:
        """Begin the sums of a chunk; those behind the last output like its."""
        last = function.integer("sub", "%outputs", 1)
        size = self.panel.lanes * FLOAT_BYTES
        with function.loop(0, self.chunk) as output:
            channel = function.smaller(function.add(first, output), last)
            begin = first_sum(function, self.stored, channel, self.panel.lanes)
            place = function.at(sums, function.multiply(output, self.panel.feature_bytes))
            for number in range(self.panel.vectors):
                function.store(vector("float", self.panel.lanes), begin, function.at(place, number * size), size)


def emit_products(function: Emitter, panel: Panel, where: tuple[str, str, str], totals: list[list[str]]) -> None:
    """Add floats times the same activations to the sums of as many outputs.

    Args:
        function: Where to.
        panel: How activations are packed.
        where: Floats, which of them is the first, and where the activations are.
        totals: Variables, by outputs and then by vectors.
    """
    kind, lanes, (floats, first, place) = vector("float", panel.lanes), panel.lanes, where
    weights = [spread(function, floats, function.add(first, number), lanes) for number in range(len(totals))]
    for number in range(panel.vectors):
        some = function.load(kind, function.at(place, number * lanes * FLOAT_BYTES), lanes * FLOAT_BYTES)
        for weight, variables in zip(weights, totals, strict=True):
            total = function.get(kind, variables[number])
            function.put(kind, function.fused(lanes, weight, some, total), variables[number])
