"""Turning rows into columns on the way in and out of a kernel, four by four within each quarter of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.runtime.kernels.emitter import Emitter, vector

__all__ = ["FLOAT_BYTES", "Panel", "read_floats", "store_tile", "turned", "write_floats"]

FLOAT_BYTES = 4
"""Of a float32."""

QUAD = 4
"""Floats that are turned together."""


def turned(function: Emitter, vectors: Sequence[str], lanes: int) -> list[str]:
    """Four vectors, turned within each run of four lanes: element j of the k-th becomes element k of the j-th."""
    kind = vector("float", lanes)

    def mixed(left: str, right: str, places: tuple[int, int, int, int]) -> str:
        shifted = [place % QUAD + (lanes if place >= QUAD else 0) for place in places]
        mask = [base + place for base in range(0, lanes, QUAD) for place in shifted]
        return function.shuffle(kind, left, right, mask)

    low, high, pairs_low, pairs_high = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
    first, second, third, fourth = vectors
    left, right = mixed(first, second, low), mixed(third, fourth, low)
    left_high, right_high = mixed(first, second, high), mixed(third, fourth, high)
    return [
        mixed(left, right, pairs_low),
        mixed(left, right, pairs_high),
        mixed(left_high, right_high, pairs_low),
        mixed(left_high, right_high, pairs_high),
    ]


def read_floats(function: Emitter, element: str, lanes: int, place: str) -> str:
    """Numbers that lie side by side, as floats.

    Args:
        function: Where to.
        element: ``float``, ``bfloat`` or ``i8``.
        lanes: How many.
        place: Where the first is.
    """
    if element == "float":
        return function.load(vector("float", lanes), place, FLOAT_BYTES)
    if element == "i8":
        small = function.load(vector("i8", lanes), place)
        return function.let(f"sitofp {vector('i8', lanes)} {small} to {vector('float', lanes)}")
    halves, words = vector("i16", lanes), vector("i32", lanes)
    wide = function.let(f"zext {halves} {function.load(halves, place, 2)} to {words}")
    shifts = f"<{', '.join(['i32 16'] * lanes)}>"
    return function.let(f"bitcast {words} {function.let(f'shl {words} {wide}, {shifts}')} to {vector('float', lanes)}")


def write_floats(function: Emitter, element: str, lanes: int, value: str, place: str) -> None:
    """Store floats side by side, rounded to `element`: ``float`` or ``bfloat``."""
    if element == "bfloat":
        value = function.let(f"fptrunc {vector('float', lanes)} {value} to {vector('bfloat', lanes)}")
    function.store(vector(element, lanes), value, place, FLOAT_BYTES if element == "float" else 2)


def store_tile(function: Emitter, element: str, tile: Sequence[str], lanes: int, place: str, stride: str) -> None:
    """Write one vector per output channel, over `lanes` rows of the batch, into rows of `stride` bytes at `place`."""
    size = FLOAT_BYTES if element == "float" else 2
    kind = vector("float", lanes)
    for first in range(0, len(tile), QUAD):
        some = list(tile[first : first + QUAD])
        columns = turned(function, [*some, *["zeroinitializer"] * (QUAD - len(some))], lanes)
        for run in range(lanes // QUAD):
            for number, column in enumerate(columns):
                part = function.shuffle(kind, column, "poison", [run * QUAD + lane for lane in range(len(some))])
                row = function.at(place, function.multiply(stride, run * QUAD + number))
                write_floats(function, element, len(some), part, function.at(row, first * size))


@dataclass(frozen=True, slots=True)
class Panel:
    """Activations of a run of rows of the batch, feature after feature.

    Attributes:
        element: Type that the activations come in: ``float`` or ``bfloat``.
        lanes: Rows in a vector.
        vectors: Vectors of a feature.
    """

    element: str
    lanes: int
    vectors: int

    @property
    def width(self) -> int:
        """Rows."""
        return self.lanes * self.vectors

    @property
    def feature_bytes(self) -> int:
        """From one feature to the next."""
        return self.width * FLOAT_BYTES

    @property
    def size(self) -> int:
        """Bytes of a number as it comes."""
        return FLOAT_BYTES if self.element == "float" else 2

    def emit_packing(self, function: Emitter, source: str, panel: str, count: str) -> None:
        """Fill a panel from `count` rows of ``%inputs`` numbers at `source`; what is beyond them becomes zero."""
        stride = function.multiply("%inputs", self.size)
        with function.loop(0, self.vectors) as number:
            done = function.multiply(number, self.lanes)
            left = function.smaller(function.larger(function.integer("sub", count, done), 0), self.lanes)
            rows = function.at(source, function.multiply(done, stride))
            goal = function.at(panel, function.multiply(number, self.lanes * FLOAT_BYTES))
            start = function.variable("i64", "0")
            with function.when(f"icmp eq i64 {left}, {self.lanes}"):
                function.put("i64", function.integer("and", "%inputs", -QUAD), start)
                self._emit_quads(function, rows, goal, stride)
            self._emit_rest(function, rows, goal, (function.get("i64", start), left))

    def _emit_quads(self, function: Emitter, rows: str, goal: str, stride: str) -> None:
        kind = vector("float", self.lanes)
        bases = [function.at(rows, function.multiply(stride, row)) for row in range(0, self.lanes, QUAD)]
        with function.loop(0, function.integer("and", "%inputs", -QUAD), QUAD) as feature:
            offset = function.multiply(feature, self.size)
            places = [function.at(base, offset) for base in bases]
            gathered = []
            for row in range(QUAD):
                parts = [
                    read_floats(function, self.element, QUAD, function.at(place, function.multiply(stride, row)))
                    for place in places
                ]
                gathered.append(_joined(function, parts))
            target = function.at(goal, function.multiply(feature, self.feature_bytes))
            for number, column in enumerate(turned(function, gathered, self.lanes)):
                function.store(kind, column, function.at(target, number * self.feature_bytes), QUAD * FLOAT_BYTES)

    def _emit_rest(self, function: Emitter, rows: str, goal: str, bounds: tuple[str, str]) -> None:
        start, left = bounds
        stride = function.multiply("%inputs", self.size)
        with function.loop(0, left) as row, function.loop(start, "%inputs") as feature:
            place = function.at(rows, function.multiply(row, stride))
            number = read_floats(function, self.element, 1, function.at(place, function.multiply(feature, self.size)))
            target = function.at(goal, function.multiply(feature, self.feature_bytes))
            function.store("<1 x float>", number, function.at(target, function.multiply(row, FLOAT_BYTES)), FLOAT_BYTES)
        with function.loop(left, self.lanes) as row, function.loop(0, "%inputs") as feature:
            target = function.at(goal, function.multiply(feature, self.feature_bytes))
            function.store("float", "0.0", function.at(target, function.multiply(row, FLOAT_BYTES)), FLOAT_BYTES)


def _joined(function: Emitter, parts: list[str]) -> str:
    """Short vectors one behind another."""
    lanes = QUAD
    while len(parts) > 1:
        kind = vector("float", lanes)
        lanes *= 2
        parts = [
            function.shuffle(kind, left, right, range(lanes))
            for left, right in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]
