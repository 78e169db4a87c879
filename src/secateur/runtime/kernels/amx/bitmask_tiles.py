"""Masked weights times many rows, by a processor that multiplies tiles of bfloat16 (Intel's AMX).

A float32 is nearly the sum of two bfloat16: itself rounded to eight bits, and what is left rounded to eight bits. A
product of two floats is nearly the sum of three products of such halves; only that of the two small ones is left out.
Tiles do sixteen times as many products in a second as vectors of floats do. Weights are decoded, zeros included, once
for all rows of a panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.amx.instructions import (
    HALVES,
    TILE_BYTES,
    emit_configuration,
    emit_line,
    emit_product,
    emit_tile,
)
from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import Kernel, begun, each_panel
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, FLOATS, SIZES, halves, write_first
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES, STRIP
from secateur.runtime.kernels.formats.column_tiles import TILE_INPUTS

__all__ = ["TILE_PAIR", "DecodingKernel"]

BESIDE = 2
"""Tiles of rows and tiles of outputs that are multiplied together."""

TILE_PAIR = BESIDE * STRIP
"""Rows of them, and outputs."""

ACTIVATIONS, WEIGHTS = 4, 6
"""Numbers of the first tiles that are multiplied; before them are the sums."""

LARGE, SMALL = 0, 1
"""Places of halves."""

COMING = 4
"""Rows from the one that is packed to the one that is asked for: packing takes 0.7 of the time."""

WHOLE_ORDER = (
    ((WEIGHTS, 0, LARGE), ()),
    ((ACTIVATIONS, 0, LARGE), ((0, 0),)),
    ((WEIGHTS, 1, LARGE), ((0, 1),)),
    ((ACTIVATIONS, 1, LARGE), ((1, 0), (1, 1))),
)
"""Which tile is loaded, of which side and half, and which products of (rows, outputs) follow, for bfloat16."""

HALVES_ORDER = (
    ((WEIGHTS, 0, LARGE), ()),
    ((ACTIVATIONS, 0, SMALL), ((0, 0),)),
    ((ACTIVATIONS, 1, SMALL), ((1, 0),)),
    ((WEIGHTS, 1, LARGE), ((0, 1),)),
    ((ACTIVATIONS, 0, LARGE), ((1, 1),)),
    ((ACTIVATIONS, 1, LARGE), ((0, 0), (1, 0), (0, 1), (1, 1))),
    ((WEIGHTS, 0, SMALL), ((0, 0), (1, 0))),
    ((WEIGHTS, 1, SMALL), ((0, 1), (1, 1))),
)
"""The same for float32: each tile is loaded once, and mostly two products before it is needed."""


class Area(NamedTuple):
    """A panel's activations of a piece.

    Attributes:
        row: The first row.
        rows: How many there are.
        feature: The first feature.
        features: How many there are.
    """

    row: str
    rows: str
    feature: str
    features: str


@dataclass(frozen=True, slots=True)
class DecodingKernel(Kernel):
    """See `Masked` for how weights lie. A unit is a chunk of outputs.

    Attributes:
        element: LLVM's type of activations and weights; ``float`` is parted into halves.
        rows: Of a panel, a multiple of 32.
        piece: Features of which a panel holds the activations at a time; sums of floats wait among the results between
            two, and those of bfloat16 cannot.
        chunk: Outputs of a unit, whose results are written together.
        part: Features of which weights are decoded at a time; a piece is whole parts.
    """

    element: str
    rows: int
    piece: int
    chunk: int
    part: int

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.rows

    def scratch_bytes(self, inputs: int) -> int:  # noqa: ARG002
        """See `Kernel.scratch_bytes`: a panel, decoded weights, and the sums of a unit."""
        return self._sums + self.rows * self.chunk * FLOAT_BYTES

    @property
    def size(self) -> int:
        """Bytes of an activation, and of its halves."""
        return SIZES[self.element]

    @property
    def _step(self) -> int:
        """Bytes of sixteen rows or outputs and as many features as a tile has: a tile, or one of each half."""
        return TILE_BYTES * self.size // SIZES["bfloat"]

    @property
    def _weights(self) -> int:
        """Bytes before decoded weights."""
        return self.rows * self.piece * self.size

    @property
    def _sums(self) -> int:
        """Bytes before sums."""
        return self._weights + TILE_PAIR * self.part * self.size

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:
        """See `Kernel.costs`: alike, for zeros are multiplied too."""
        return np.arange((len(starts) - 1) * STRIP // (-(-inputs // self.part) * self.chunk) + 1)

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        emit_configuration(function)
        units = function.integer("sdiv", function.add("%outputs", self.chunk - 1), self.chunk)
        with each_panel(function, units) as (number, bounds):
            row = function.multiply(number, self.rows)
            rows = function.smaller(function.integer("sub", "%batch", row), self.rows)
            with function.loop(0, "%inputs", self.piece) as feature:
                features = function.smaller(function.integer("sub", "%inputs", feature), self.piece)
                area = Area(row, rows, feature, features)
                self._emit_packing(function, area)
                with function.loop(*bounds) as unit:
                    self._emit_unit(function, area, function.multiply(unit, self.chunk))
        function.do("llvm.x86.tilerelease", [])
        return function

    def _emit_packing(self, function: Emitter, area: Area) -> None:
        """Put the activations of an area into tiles, in halves if they are floats; rows behind the last are like it."""
        last = function.integer("sub", area.rows, 1)
        with function.loop(0, rounded_up(function, area.rows, TILE_PAIR)) as line:
            row = function.add(area.row, function.smaller(line, last))
            first = function.add(function.multiply(row, "%inputs"), area.feature)
            source = function.at("%x", function.multiply(first, self.size))
            goal = slot_of(function, "%scratch", line, self.piece * self.size)
            with function.loop(0, area.features, TILE_INPUTS) as feature:
                some = function.at(source, function.multiply(feature, self.size))
                coming = function.at(some, function.multiply("%inputs", COMING * self.size))
                for offset in range(0, TILE_INPUTS * self.size, CACHE_LINE_BYTES):
                    function.prefetch(function.at(coming, offset))
                left = function.integer("sub", area.features, feature)
                self._emit_line(function, some, left, function.at(goal, self._steps(function, feature)))

    def _emit_line(self, function: Emitter, source: str, left: str, goal: str) -> None:
        """A row's activations of a tile, of which so many are left; behind them are zeros."""
        if self.element == "bfloat":
            function.store(HALVES, function.load_first(2 * STRIP, source, left, "i16"), goal, CACHE_LINE_BYTES)
            return
        sides = []
        for side in range(2):
            count = function.integer("sub", left, side * STRIP)
            found = function.load_first(STRIP, function.at(source, side * CACHE_LINE_BYTES), count)
            sides.append(halves(function, found, STRIP))
        for number, (left_side, right_side) in enumerate(zip(*sides, strict=True)):
            line = function.shuffle(vector("i16", STRIP), left_side, right_side, range(2 * STRIP))
            function.store(HALVES, line, function.at(goal, number * TILE_BYTES), CACHE_LINE_BYTES)

    def _steps(self, function: Emitter, feature: str, beside: int = 1) -> str:
        """Bytes from a first feature to another, of tiles that lie beside so many."""
        return function.multiply(feature, beside * self._step // TILE_INPUTS)

    def _emit_unit(self, function: Emitter, area: Area, output: str) -> None:
        weights, sums = function.at("%scratch", self._weights), function.at("%scratch", self._sums)
        outputs = function.smaller(function.integer("sub", "%outputs", output), self.chunk)
        self._emit_first_sums(function, area, (output, outputs, sums))
        parts = function.integer("sdiv", function.add("%inputs", self.part - 1), self.part)
        chunk = function.integer("sdiv", output, self.chunk)
        with function.loop(0, area.features, self.part) as offset:
            count = function.smaller(function.integer("sub", area.features, offset), self.part)
            number = function.integer("sdiv", function.add(area.feature, offset), self.part)
            run = function.multiply(function.add(function.multiply(chunk, parts), number), self.chunk // STRIP)
            source = function.at("%scratch", self._steps(function, offset))
            with function.loop(0, outputs, TILE_PAIR) as first:
                strip = function.add(run, function.integer("sdiv", first, STRIP))
                for side in range(BESIDE):
                    goal = function.at(weights, side * self._step)
                    self._emit_decoding(function, (function.add(strip, side), count), goal)
                own = function.at(sums, function.multiply(first, STRIP * FLOAT_BYTES))
                with function.loop(0, area.rows, TILE_PAIR) as row:
                    some = function.at(source, function.multiply(row, self.piece * self.size))
                    goal = function.at(own, function.multiply(row, self.chunk * FLOAT_BYTES))
                    self._emit_products(function, (some, weights, goal), count)
        self._emit_results(function, area, (output, outputs, sums))

    def _emit_decoding(self, function: Emitter, part: tuple[str, str], goal: str) -> None:
        """A strip's weights of a part as tiles, two features in each line.

        Args:
            function: Where to.
            part: Its number, and how many features it has.
            goal: Where the first tile belongs; others follow behind those of the other strips.
        """
        run, features = part
        start = function.load("i64", function.at("%starts", function.multiply(run, 8)))
        slot = function.variable("ptr", function.at("%values", function.multiply(start, self.size)))
        masks = function.at("%columns", function.multiply(run, self.part * 2))
        with function.loop(0, features, TILE_INPUTS) as feature:
            tile = function.at(goal, self._steps(function, feature, BESIDE))
            own = function.at(masks, function.multiply(feature, 2))
            with function.loop(0, STRIP) as line:
                mask = function.at(own, function.multiply(line, 4))
                for number, half in enumerate(emit_line(function, slot, mask, self.element)):
                    place = function.at(tile, function.multiply(line, CACHE_LINE_BYTES))
                    function.store(HALVES, half, function.at(place, number * TILE_BYTES), CACHE_LINE_BYTES)

    def _emit_products(self, function: Emitter, where: tuple[str, str, str], features: str) -> None:
        """Add the products of two tiles of rows and two of outputs.

        Args:
            function: Where to.
            where: The activations, the weights and the sums.
            features: How many.
        """
        activations, weights, sums = where
        places = [(row, output) for row in range(BESIDE) for output in range(BESIDE)]
        corners = [function.at(sums, (row * self.chunk // STRIP + output) * TILE_BYTES) for row, output in places]
        for number, corner in enumerate(corners):
            emit_tile(function, "tileloadd64", number, corner, CACHE_LINE_BYTES)
        order = HALVES_ORDER if self.element == "float" else WHOLE_ORDER
        with function.loop(0, features, TILE_INPUTS) as feature:
            some = function.at(activations, self._steps(function, feature))
            own = function.at(weights, self._steps(function, feature, BESIDE))
            for (kind, side, half), products in order:
                base, stride = (own, self._step) if kind == WEIGHTS else (some, STRIP * self.piece * self.size)
                place = function.at(base, side * stride + half * TILE_BYTES)
                emit_tile(function, "tileloadd64", kind + side, place, CACHE_LINE_BYTES)
                for left, right in products:
                    emit_product(function, BESIDE * left + right, ACTIVATIONS + left, WEIGHTS + right)
        for number, corner in enumerate(corners):
            emit_tile(function, "tilestored64", number, corner, CACHE_LINE_BYTES)

    def _emit_first_sums(self, function: Emitter, area: Area, where: tuple[str, str, str]) -> None:
        """Begin the sums of a unit: with its bias, or with what has been added up of the pieces before.

        Args:
            function: Where to.
            area: Its activations.
            where: Its first output, how many it has, and the place of its sums.
        """
        output, outputs, sums = where
        is_first = function.let(f"icmp eq i64 {area.feature}, 0")
        bias = function.at("%bias", function.multiply(output, FLOAT_BYTES))
        goal = self._goal(function, area.row, output)
        source = function.let(f"select i1 {is_first}, ptr {bias}, ptr {goal}")
        stride = function.let(f"select i1 {is_first}, i64 0, i64 {function.multiply('%outputs', FLOAT_BYTES)}")
        with function.loop(0, area.rows) as row:
            line = function.at(source, function.multiply(row, stride))
            place = slot_of(function, sums, row, self.chunk * FLOAT_BYTES)
            with function.loop(0, outputs, STRIP) as first:
                left = function.integer("sub", outputs, first)
                some = function.load_first(STRIP, function.at(line, function.multiply(first, FLOAT_BYTES)), left)
                goal = function.at(place, function.multiply(first, STRIP * FLOAT_BYTES))
                function.store(FLOATS, some, goal, CACHE_LINE_BYTES)

    def _emit_results(self, function: Emitter, area: Area, where: tuple[str, str, str]) -> None:
        """Write the sums of a unit to where results belong; arguments as for `_emit_first_sums`."""
        output, outputs, sums = where
        goal, stride = self._goal(function, area.row, output), function.multiply("%outputs", self.size)
        with function.loop(0, area.rows) as row:
            line = function.at(goal, function.multiply(row, stride))
            place = slot_of(function, sums, row, self.chunk * FLOAT_BYTES)
            with function.loop(0, outputs, STRIP) as first:
                own = function.at(place, function.multiply(first, STRIP * FLOAT_BYTES))
                some = function.load(FLOATS, own, CACHE_LINE_BYTES)
                aim = function.at(line, function.multiply(first, self.size))
                write_first(function, self.element, STRIP, some, aim, function.integer("sub", outputs, first))

    def _goal(self, function: Emitter, row: str, output: str) -> str:
        """Where the result of a row and an output belongs."""
        place = function.add(function.multiply(row, "%outputs"), output)
        return function.at("%y", function.multiply(place, self.size))


def slot_of(function: Emitter, tiles: str, row: str, size: int) -> str:
    """Where a row's line in the first tile is, of tiles that hold so many bytes of each row, sixteen rows each."""
    tile, inner = function.integer("sdiv", row, STRIP), function.integer("srem", row, STRIP)
    line = function.at(tiles, function.multiply(tile, STRIP * size))
    return function.at(line, function.multiply(inner, CACHE_LINE_BYTES))


def rounded_up(function: Emitter, count: str, step: int) -> str:
    """A number rounded up to whole steps."""
    return function.multiply(function.integer("sdiv", function.add(count, step - 1), step), step)
