"""Turning rows into columns on the way in and out of a kernel, in squares as wide as a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.runtime.kernels.emitter import Emitter, vector

__all__ = [
    "AHEAD",
    "FLOAT_BYTES",
    "LINE_BYTES",
    "SIZES",
    "Panel",
    "Staged",
    "emit_results",
    "expanded",
    "first_sum",
    "folded",
    "read_floats",
    "spread",
    "turned",
    "write_floats",
]

FLOAT_BYTES = 4
"""Of a float32."""

SIZES = {"float": FLOAT_BYTES, "bfloat": 2, "i8": 1}
"""Bytes of LLVM's types."""

LINE_BYTES = 64
"""Of a line of the cache."""

AHEAD = 8192
"""Bytes from the weights at work to those that are asked for: the processor itself stops at every page."""

EXPANDED = 16
"""Weights that become floats together."""

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


def transposed(function: Emitter, rows: Sequence[str], lanes: int) -> list[str]:
    """As many vectors as each has lanes (4, 8 or 16): element j of the k-th becomes element k of the j-th."""
    parts = [turned(function, rows[first : first + QUAD], lanes) for first in range(0, lanes, QUAD)]
    columns = [""] * lanes
    for number in range(QUAD):
        columns[number::QUAD] = _quads_turned(function, [part[number] for part in parts], lanes)
    return columns


def _quads_turned(function: Emitter, vectors: list[str], lanes: int) -> list[str]:
    """One, two or four vectors of as many runs of four lanes: run j of the k-th becomes run k of the j-th."""
    kind = vector("float", lanes)

    def picked(left: str, right: str, runs: list[int]) -> str:
        return function.shuffle(kind, left, right, [run * QUAD + lane for run in runs for lane in range(QUAD)])

    if len(vectors) == 1:
        return vectors
    if len(vectors) == 2:
        return [picked(vectors[0], vectors[1], [run, run + 2]) for run in range(2)]
    first, second, third, fourth = vectors
    columns = []
    for run in (0, 2):
        pair = [run, run + 1, run + 4, run + 5]
        left, right = picked(first, second, pair), picked(third, fourth, pair)
        columns += [picked(left, right, [0, 2, 4, 6]), picked(left, right, [1, 3, 5, 7])]
    return columns


def folded(function: Emitter, total: str, lanes: int, kept: int = 1) -> str:
    """A vector of which the lanes that lie a multiple of `kept` apart are added up."""
    while lanes > kept:
        halves = [range(lanes // 2), range(lanes // 2, lanes)]
        low, high = (function.shuffle(vector("float", lanes), total, "poison", list(half)) for half in halves)
        lanes //= 2
        total = function.let(f"fadd {vector('float', lanes)} {low}, {high}")
    return total


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
        return SIZES[self.element]

    def emit_packing(self, function: Emitter, source: str, panel: str, count: str) -> None:
        """Fill a panel from `count` rows of ``%inputs`` numbers at `source`; what is beyond them is like the last.

        A whole line of the cache is read of each row: rows of a length that many sets of the cache have in common, such
        as 4096, put each other out of it before a second read.
        """
        stride = function.multiply("%inputs", self.size)
        last = function.integer("sub", count, 1)
        with function.loop(0, self.vectors) as number:
            done = function.multiply(number, self.lanes)
            goal = function.at(panel, function.multiply(number, self.lanes * FLOAT_BYTES))
            rows = []
            for lane in range(self.lanes):
                row = function.smaller(function.add(done, lane), last)
                rows.append(function.at(source, function.multiply(row, stride)))
            behind = function.integer("sub", "%inputs", self.lanes)
            with function.when(f"icmp sge i64 {behind}, 0"), function.loop(0, "%inputs", self.lanes) as feature:
                self._emit_square(function, rows, goal, function.smaller(feature, behind))
            with function.when(f"icmp slt i64 {behind}, 0"), function.loop(0, "%inputs") as feature:
                for lane, row in enumerate(rows):
                    some = read_floats(function, self.element, 1, function.at(row, self._offset(function, feature)))
                    target = function.at(goal, function.multiply(feature, self.feature_bytes))
                    function.store("<1 x float>", some, function.at(target, lane * FLOAT_BYTES), FLOAT_BYTES)

    def _offset(self, function: Emitter, feature: str) -> str:
        return function.multiply(feature, self.size)

    def _emit_square(self, function: Emitter, rows: list[str], goal: str, feature: str) -> None:
        """As many features as a vector has lanes; the last ones begin before the ones before them end."""
        offset = self._offset(function, feature)
        found = [read_floats(function, self.element, self.lanes, function.at(row, offset)) for row in rows]
        target = function.at(goal, function.multiply(feature, self.feature_bytes))
        for number, column in enumerate(transposed(function, found, self.lanes)):
            place = function.at(target, number * self.feature_bytes)
            function.store(vector("float", self.lanes), column, place, self.lanes * FLOAT_BYTES)


class Staged:
    """Results of a few outputs for a whole panel, until they are turned and written.

    Args:
        function: Where to.
        panel: The panel that they belong to.
        outputs: How many at most.
        stored: LLVM's type of the weights: of int8, results still lack their scale and bias.
    """

    def __init__(self, function: Emitter, panel: Panel, outputs: int, stored: str) -> None:
        self._function, self.panel, self.outputs = function, panel, outputs
        self._is_scaled = stored == "i8"
        self._rest = function.variable(f"[{outputs * panel.lanes} x {panel.element}]")

    def emit_filling(self, memory: str, sums: Sequence[Sequence[str]], slot: str) -> None:
        """Keep variables, by outputs and vectors, as those from the output `slot` on."""
        function, lanes, kind = self._function, self.panel.lanes, vector("float", self.panel.lanes)
        place = function.at(memory, function.multiply(slot, self.panel.feature_bytes))
        for output, totals in enumerate(sums):
            for number, total in enumerate(totals):
                goal = function.at(place, output * self.panel.feature_bytes + number * lanes * FLOAT_BYTES)
                function.store(kind, function.get(kind, total), goal, lanes * FLOAT_BYTES)

    def emit_prefetch(self, rows: tuple[str, str], outputs: tuple[str, str]) -> None:
        """Ask for where results will be written, so that they need not wait for it.

        Args:
            rows: First row, and how many.
            outputs: First output, and how many.
        """
        function, panel = self._function, self.panel
        place = function.add(function.multiply(rows[0], "%outputs"), outputs[0])
        goal = function.at("%y", function.multiply(place, panel.size))
        stride = function.multiply("%outputs", panel.size)
        step = LINE_BYTES // panel.size
        with function.loop(0, rows[1]) as row, function.loop(0, outputs[1], step) as output:
            line = function.add(function.multiply(row, stride), function.multiply(output, panel.size))
            function.prefetch(function.at(goal, line), is_written=True, level=2)

    def emit_writing(self, memory: str, rows: tuple[str, str], outputs: tuple[str, str]) -> None:
        """Write into ``%y``, which has ``%outputs`` numbers a row.

        Args:
            memory: Where they are kept, output by output.
            rows: First row, and how many.
            outputs: First output, and how many.
        """
        function, panel = self._function, self.panel
        row, count = rows
        place = function.add(function.multiply(row, "%outputs"), outputs[0])
        goal = function.at("%y", function.multiply(place, panel.size))
        stride = function.multiply("%outputs", panel.size)
        with function.loop(0, panel.vectors) as number:
            done = function.multiply(number, panel.lanes)
            left = function.smaller(function.integer("sub", count, done), panel.lanes)
            rows_at = function.at(goal, function.multiply(done, stride))
            source = function.at(memory, function.multiply(done, FLOAT_BYTES))
            whole = function.let(f"icmp eq i64 {left}, {panel.lanes}")
            full = function.let(f"icmp eq i64 {outputs[1]}, {self.outputs}")
            direct = function.let(f"and i1 {whole}, {full}")
            own = self.outputs * panel.size
            aim = function.let(f"select i1 {direct}, ptr {rows_at}, ptr {self._rest}")
            step = function.let(f"select i1 {direct}, i64 {stride}, i64 {own}")
            self._emit_squares(source, aim, step, outputs[0])
            with function.when(f"icmp eq i1 {direct}, false"):
                self._emit_copy((left, outputs[1]), rows_at, stride)

    def _result(self, source: str, output: int, first: str) -> str:
        """A vector of one output's results, the `output`-th behind the first."""
        function, panel = self._function, self.panel
        kind = vector("float", panel.lanes)
        place = function.at(source, output * panel.feature_bytes)
        total = function.load(kind, place, panel.lanes * FLOAT_BYTES)
        if not self._is_scaled:
            return total
        channel = function.smaller(function.add(first, output), function.integer("sub", "%outputs", 1))
        scale, bias = (spread(function, f"%{name}", channel, panel.lanes) for name in ("scales", "bias"))
        return function.fused(panel.lanes, total, scale, bias)

    def _emit_squares(self, source: str, aim: str, step: str, channel: str) -> None:
        function, panel = self._function, self.panel
        lanes, kind = panel.lanes, vector("float", panel.lanes)
        for first in range(0, self.outputs, lanes):
            count = min(lanes, self.outputs - first)
            some = [self._result(source, first + output, channel) for output in range(count)]
            rows = transposed(function, [*some, *["zeroinitializer"] * (lanes - count)], lanes)
            for lane, row in enumerate(rows):
                part = row if count == lanes else function.shuffle(kind, row, "poison", range(count))
                place = function.at(function.at(aim, function.multiply(step, lane)), first * panel.size)
                write_floats(function, panel.element, count, part, place)

    def _emit_copy(self, sizes: tuple[str, str], goal: str, stride: str) -> None:
        """From the stack, where no neighbour is written over."""
        function, panel = self._function, self.panel
        with function.loop(0, sizes[0]) as row:
            source = function.at(self._rest, function.multiply(row, self.outputs * panel.size))
            aim = function.at(goal, function.multiply(row, stride))
            with function.loop(0, sizes[1]) as output:
                offset = function.multiply(output, panel.size)
                found = function.load(panel.element, function.at(source, offset), panel.size)
                function.store(panel.element, found, function.at(aim, offset), panel.size)


def emit_results(function: Emitter, staged: Staged, sums: str, where: tuple[str, str, str, str]) -> None:
    """Write sums into ``%y``; `where`: first row and how many, first output and how many."""
    row, rows, first, count = where
    with function.loop(0, count, staged.outputs) as output:
        left = function.smaller(function.integer("sub", count, output), staged.outputs)
        memory = function.at(sums, function.multiply(output, staged.panel.feature_bytes))
        staged.emit_writing(memory, (row, rows), (function.add(first, output), left))


def spread(function: Emitter, floats: str, number: str, lanes: int) -> str:
    """A vector of one of the floats at a place."""
    found = read_floats(function, "float", 1, function.at(floats, function.multiply(number, FLOAT_BYTES)))
    return function.shuffle("<1 x float>", found, "poison", [0] * lanes)


def first_sum(function: Emitter, stored: str, channel: str, lanes: int) -> str:
    """What an output's sums begin with: its bias, unless they are to be scaled."""
    return "zeroinitializer" if stored == "i8" else spread(function, "%bias", channel, lanes)


def expanded(function: Emitter, stored: str, bounds: tuple[str, str], memory: str) -> str:
    """Weights of a run as floats, in memory where they are none.

    Args:
        function: Where to.
        stored: LLVM's type of the weights.
        bounds: The first, and behind the last.
        memory: Room for them.

    Returns:
        Where the weight of number 0 would be.
    """
    if stored == "float":
        return "%values"
    start, stop = bounds
    count, size = function.integer("sub", stop, start), SIZES[stored]
    source = function.at("%values", function.multiply(start, size))
    whole = function.integer("and", count, -EXPANDED)
    for first, last, lanes in (("0", whole, EXPANDED), (whole, count, 1)):
        with function.loop(first, last, lanes) as number:
            some = read_floats(function, stored, lanes, function.at(source, function.multiply(number, size)))
            goal = function.at(memory, function.multiply(number, FLOAT_BYTES))
            function.store(vector("float", lanes), some, goal, FLOAT_BYTES)
    return function.at(memory, function.multiply(start, -FLOAT_BYTES))
