"""Single weights times a few rows of the batch, whose activations are gathered for sixteen weights at once."""

from __future__ import annotations

from abc import abstractmethod

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import FewRowsKernel, begun
from secateur.runtime.kernels.codegen.vectors import AHEAD, FLOAT_BYTES, FLOATS, SIZES, read_floats, write_floats
from secateur.runtime.kernels.formats.base import STRIP

__all__ = ["FloatRowsKernel", "GatheringKernel", "emit_floats", "emit_sums", "numbered"]

PLACES = vector("ptr", STRIP)


class FloatRowsKernel(FewRowsKernel):
    """Which needs activations as floats."""

    def scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.scratch_bytes`: activations that are no floats, as floats."""
        return 0 if self.element == "float" else inputs * self.batch * FLOAT_BYTES


class GatheringKernel(FloatRowsKernel):
    """Whose unit is a chunk of outputs.

    Attributes:
        chunk: Outputs of a chunk.
        piece: Features of a piece.
        element: LLVM's type of activations.
        batch: Rows of the batch.
        stored: LLVM's type of the weights.
    """

    chunk: int
    piece: int
    stored: str

    @abstractmethod
    def emit_part(self, function: Emitter, part: str, features: str, sums: str) -> None:
        """Add the products of a piece of a chunk, by its number; activations and sums are where the others say."""

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        floats = emit_floats(function, self.element, self.batch)
        sums = function.variable(f"[{self.batch * self.chunk} x float]")
        pieces = function.integer("sdiv", function.add("%inputs", self.piece - 1), self.piece)
        with function.loop("%begin", "%end") as chunk:
            with function.loop(0, self.batch * self.chunk, STRIP) as number:
                function.store(FLOATS, "zeroinitializer", function.at(sums, function.multiply(number, FLOAT_BYTES)), 64)
            with function.loop(0, pieces) as piece:
                features = function.at(floats, function.multiply(piece, self.piece * FLOAT_BYTES))
                self.emit_part(function, function.add(function.multiply(chunk, pieces), piece), features, sums)
            outputs = function.multiply(chunk, self.chunk), self.chunk
            emit_sums(function, sums, outputs, (self.element, self.stored, self.batch))
        return function

    def emit_sixteen(self, function: Emitter, number: str, features: str, totals: list[str]) -> None:
        """Multiply the `number`-th sixteen weights with what they belong to."""
        first = function.multiply(number, STRIP)
        place = function.at("%values", function.multiply(first, SIZES[self.stored]))
        function.prefetch(function.at(place, AHEAD), level=2)
        weights = read_floats(function, self.stored, STRIP, place)
        columns = function.load(vector("i8", STRIP), function.at("%columns", first))
        for row, total in enumerate(totals):
            source = function.at(features, function.multiply("%inputs", row * FLOAT_BYTES))
            some = function.gather(numbered(function, source, columns))
            function.put(FLOATS, function.fused(STRIP, weights, some, function.get(FLOATS, total)), total)


def emit_sums(function: Emitter, sums: str, outputs: tuple[str, int], types: tuple[str, str, int]) -> None:
    """Add the bias to sums, row after row, and write them to ``%y``.

    Args:
        function: Where to.
        sums: Where they are.
        outputs: The first, and how many there are of each row at most.
        types: LLVM's types of the activations and the weights, and the rows.
    """
    (first, count), (element, stored, rows) = outputs, types
    left = function.smaller(function.integer("sub", "%outputs", first), count)
    for row in range(rows):
        with function.loop(0, left) as output:
            channel = function.add(first, output)
            place = function.multiply(channel, FLOAT_BYTES)
            offset = function.multiply(function.add(output, row * count), FLOAT_BYTES)
            total = read_floats(function, "float", 1, function.at(sums, offset))
            bias = read_floats(function, "float", 1, function.at("%bias", place))
            if stored == "i8":
                scale = read_floats(function, "float", 1, function.at("%scales", place))
                result = function.fused(1, total, scale, bias)
            else:
                result = function.let(f"fadd <1 x float> {total}, {bias}")
            goal = function.multiply(function.add(function.multiply("%outputs", row), channel), SIZES[element])
            write_floats(function, element, 1, result, function.at("%y", goal))


def numbered(function: Emitter, place: str, columns: str, kind: str = "i8") -> str:
    """Places of floats by their numbers, sixteen of a type."""
    wide = function.let(f"zext {vector(kind, STRIP)} {columns} to {vector('i64', STRIP)}")
    return function.let(f"getelementptr float, ptr {place}, {vector('i64', STRIP)} {wide}")


def emit_floats(function: Emitter, element: str, rows: int) -> str:
    """Where the activations are as floats: in place, or in ``%scratch``."""
    if element == "float":
        return "%x"
    count = function.multiply("%inputs", rows)
    with function.loop(0, count) as number:
        found = read_floats(function, element, 1, function.at("%x", function.multiply(number, SIZES[element])))
        function.store("<1 x float>", found, function.at("%scratch", function.multiply(number, FLOAT_BYTES)), 4)
    return "%scratch"
