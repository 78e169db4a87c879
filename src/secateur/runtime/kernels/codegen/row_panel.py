"""Rows of numbers, which are turned into panels on the way in, and back on the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import each_panel
from secateur.runtime.kernels.codegen.panel import Access, Panel
from secateur.runtime.kernels.codegen.transpose import QUAD, transposed
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, SIZES, halves, read_floats, write_floats
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES

__all__ = ["RowPanel", "zipped"]


@dataclass(frozen=True, slots=True)
class RowPanel(Panel):
    """A run of rows of the batch, packed feature after feature.

    Attributes:
        element: Type that the activations come in and that results become: ``float`` or ``bfloat``.
        lanes: Rows in a vector.
        vectors: Vectors of a feature; an even number if they are packed as ``bfloat``.
        packed: What the activations are packed as: ``float``; ``bfloat``, where two vectors lie in each other, four
            rows of the one and four of the other by turns: what `zipped` takes; or ``halves``, two ``bfloat`` for each.
    """

    element: str
    lanes: int
    vectors: int
    packed: str = "float"

    @property
    def size(self) -> int:
        """Bytes of a number as it comes."""
        return SIZES[self.element]

    @property
    def packed_bytes(self) -> int:
        """Of a feature's activations."""
        return self.width * SIZES[self.packed]

    def scratch_bytes(self, inputs: int) -> int:
        """See `Panel.scratch_bytes`."""
        return inputs * self.packed_bytes

    def access(self, function: Emitter, outputs: int, stored: str) -> Access:
        """See `Panel.access`."""
        return RowAccess(function, self, outputs, stored)


class RowAccess(Access):
    """Which packs into ``%scratch``, and writes a square of results at a time."""

    def __init__(self, function: Emitter, panel: RowPanel, outputs: int, stored: str) -> None:
        super().__init__(function, panel, outputs, stored)
        self._element, self._size, self._width = panel.element, panel.size, panel.width
        self._packed, self._packed_bytes = panel.packed, panel.packed_bytes
        self._rest = function.variable(f"[{outputs * panel.lanes} x {panel.element}]")
        self._row = self._rows = ""

    @contextmanager
    def emit_runs(self, units: str) -> Iterator[tuple[str, str]]:
        """See `Access.emit_runs`."""
        function = self.function
        with each_panel(function, units) as (number, bounds):
            self._row = function.multiply(number, self._width)
            self._rows = function.smaller(function.integer("sub", "%batch", self._row), self._width)
            self._emit_packing()
            yield bounds

    def base(self, feature: str) -> str:
        """See `Access.base`."""
        return self.place("%scratch", feature)

    def place(self, base: str, number: str) -> str:
        """See `Access.place`."""
        return self.function.at(base, self.function.multiply(number, self._packed_bytes))

    def loaded(self, place: str) -> list[str]:
        """See `Access.loaded`."""
        places = [self.function.at(place, number * self.vector_bytes) for number in range(self.vectors)]
        return [self.function.load(self.kind, some, self.vector_bytes) for some in places]

    @property
    def room(self) -> str:
        """See `Access.room`."""
        return self.base("%inputs")

    def emit_prefetch(self, first: str, count: str) -> None:
        """See `Access.emit_prefetch`."""
        function = self.function
        goal, stride = self._goal(first)
        step = CACHE_LINE_BYTES // self._size
        with function.loop(0, self._rows) as row, function.loop(0, count, step) as output:
            line = function.add(function.multiply(row, stride), function.multiply(output, self._size))
            function.prefetch(function.at(goal, line), is_written=True, level=2)

    def emit_results(self, memory: str, first: str, count: str) -> None:
        """See `Access.emit_results`."""
        function = self.function
        with function.loop(0, count, self.outputs) as output:
            left = function.smaller(function.integer("sub", count, output), self.outputs)
            kept = function.at(memory, function.multiply(output, self.feature_bytes))
            self._emit_writing(kept, function.add(first, output), left)

    def _goal(self, first: str) -> tuple[str, str]:
        """Where the first row's results from an output on belong, and bytes from a row to the next."""
        function = self.function
        place = function.add(function.multiply(self._row, "%outputs"), first)
        return function.at("%y", function.multiply(place, self._size)), function.multiply("%outputs", self._size)

    def _emit_packing(self) -> None:
        """Fill the panel; what is behind the batch's last row is like it.

        A whole line of the cache is read of each row: rows of a length that many sets of the cache have in common, such
        as 4096, put each other out of it before a second read.
        """
        function = self.function
        stride = function.multiply("%inputs", self._size)
        source = function.at("%x", function.multiply(self._row, stride))
        last = function.integer("sub", self._rows, 1)
        beside = 2 if self._packed == "bfloat" else 1
        with function.loop(0, self.vectors, beside) as number:
            done = function.multiply(number, self.lanes)
            goal = function.at("%scratch", function.multiply(done, SIZES[self._packed]))
            rows = []
            for lane in range(self.lanes * beside):
                row = function.smaller(function.add(done, lane), last)
                rows.append(function.at(source, function.multiply(row, stride)))
            behind = function.integer("sub", "%inputs", self.lanes)
            with function.when(f"icmp sge i64 {behind}, 0"), function.loop(0, "%inputs", self.lanes) as feature:
                self._emit_square(rows, goal, function.smaller(feature, behind))
            with function.when(f"icmp slt i64 {behind}, 0"), function.loop(0, "%inputs") as feature:
                self._emit_feature(rows, goal, feature)

    def _emit_square(self, rows: list[str], goal: str, feature: str) -> None:
        """As many features as a vector has lanes; the last ones begin before the ones before them end."""
        function, lanes = self.function, self.lanes
        offset, target = function.multiply(feature, self._size), self.place(goal, feature)
        found = [read_floats(function, self._element, lanes, function.at(row, offset)) for row in rows]
        squares = [transposed(function, found[first : first + lanes], lanes) for first in range(0, len(rows), lanes)]
        for number, columns in enumerate(zip(*squares, strict=True)):
            place = function.at(target, number * self._packed_bytes)
            if self._packed == "halves":
                self._emit_halves(columns[0], lanes, place)
            elif len(columns) == 1:
                function.store(self.kind, columns[0], place, self.vector_bytes)
            else:
                half = vector("i16", lanes)
                low, high = (function.rounded(lanes, column) for column in columns)
                mixed = function.shuffle(half, low, high, turns(lanes))
                function.store(vector("i16", 2 * lanes), mixed, place, self.vector_bytes)

    def _emit_feature(self, rows: list[str], goal: str, feature: str) -> None:
        """One feature, number by number."""
        function = self.function
        offset, target = function.multiply(feature, self._size), self.place(goal, feature)
        places = turns(self.lanes) if self._packed == "bfloat" else list(range(len(rows)))
        for place, lane in enumerate(places):
            some = read_floats(function, self._element, 1, function.at(rows[lane], offset))
            aim = function.at(target, place * SIZES[self._packed])
            if self._packed == "halves":
                self._emit_halves(some, 1, aim)
            else:
                write_floats(function, self._packed, 1, some, aim)

    def _emit_halves(self, floats: str, lanes: int, place: str) -> None:
        """The two halves of each float, side by side."""
        function, half = self.function, vector("i16", lanes)
        order = [lane + side * lanes for lane in range(lanes) for side in range(2)]
        both = function.shuffle(half, *halves(function, floats, lanes), order)
        function.store(vector("i16", 2 * lanes), both, place, lanes * FLOAT_BYTES)

    def _emit_writing(self, memory: str, first: str, count: str) -> None:
        """Write at most as many outputs as are written together."""
        function = self.function
        goal, stride = self._goal(first)
        with function.loop(0, self.vectors) as number:
            done = function.multiply(number, self.lanes)
            left = function.smaller(function.integer("sub", self._rows, done), self.lanes)
            rows_at = function.at(goal, function.multiply(done, stride))
            source = function.at(memory, function.multiply(done, FLOAT_BYTES))
            whole = function.let(f"icmp eq i64 {left}, {self.lanes}")
            full = function.let(f"icmp eq i64 {count}, {self.outputs}")
            direct = function.let(f"and i1 {whole}, {full}")
            aim = function.let(f"select i1 {direct}, ptr {rows_at}, ptr {self._rest}")
            step = function.let(f"select i1 {direct}, i64 {stride}, i64 {self.outputs * self._size}")
            self._emit_squares(source, aim, step, first)
            with function.when(f"icmp eq i1 {direct}, false"):
                self._emit_copy((left, count), rows_at, stride)

    def _emit_squares(self, source: str, aim: str, step: str, channel: str) -> None:
        function = self.function
        for first in range(0, self.outputs, self.lanes):
            count = min(self.lanes, self.outputs - first)
            some = [
                self.result(
                    function.at(source, output * self.feature_bytes), function.add(channel, output), self.vector_bytes
                )
                for output in range(first, first + count)
            ]
            rows = transposed(function, [*some, *["zeroinitializer"] * (self.lanes - count)], self.lanes)
            for lane, row in enumerate(rows):
                part = row if count == self.lanes else function.shuffle(self.kind, row, "poison", range(count))
                place = function.at(function.at(aim, function.multiply(step, lane)), first * self._size)
                write_floats(function, self._element, count, part, place)

    def _emit_copy(self, sizes: tuple[str, str], goal: str, stride: str) -> None:
        """From the stack, where no neighbour is written over."""
        function = self.function
        with function.loop(0, sizes[0]) as row:
            source = function.at(self._rest, function.multiply(row, self.outputs * self._size))
            aim = function.at(goal, function.multiply(row, stride))
            with function.loop(0, sizes[1]) as output:
                offset = function.multiply(output, self._size)
                found = function.load(self._element, function.at(source, offset), self._size)
                function.store(self._element, found, function.at(aim, offset), self._size)


def turns(lanes: int) -> list[int]:
    """Which of two vectors' lanes lie where when they lie in each other, four of the one and four of the other.

    Example:
        >>> turns(4)
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    starts = [side + first for first in range(0, lanes, QUAD) for side in (0, lanes)]
    return [start + lane for start in starts for lane in range(QUAD)]


def zipped(function: Emitter, left: str, right: str, lanes: int) -> list[str]:
    """Of two features, whose vectors lie in each other, the rows' numbers side by side: for each of the two vectors."""
    kind, halves = vector("bfloat", 2 * lanes), []
    for half in (0, QUAD):
        own = [first + lane for first in range(half, 2 * lanes, 2 * QUAD) for lane in range(QUAD)]
        halves.append(function.shuffle(kind, left, right, [side + lane for lane in own for side in (0, 2 * lanes)]))
    return halves
