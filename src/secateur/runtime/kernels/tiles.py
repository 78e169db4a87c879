"""Sixteen outputs at a time, by a processor that multiplies whole tiles of bfloat16 (Intel's AMX).

A tile of weights has sixteen outputs and 32 inputs, any that one of the outputs keeps. Activations of these inputs are
put together beside it, two inputs of a row side by side, as the processor wants them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.chunks import STRIP
from secateur.runtime.kernels.emitter import Emitter, vector
from secateur.runtime.kernels.kernel import Kernel, begun
from secateur.runtime.kernels.panels import Access
from secateur.runtime.kernels.rows import RowPanel, zipped
from secateur.runtime.kernels.turning import LINE_BYTES, spread

__all__ = ["TILE_BYTES", "TILE_INPUTS", "TileKernel"]

TILE_INPUTS = 32
"""Of a tile: a line of the cache of bfloat16."""

TILE_BYTES = STRIP * LINE_BYTES
"""Sixteen lines."""

TILES = 8
"""That the processor has."""

WEIGHTS, ACTIVATIONS = 4, 5
"""Numbers of the first tiles that are multiplied; before them are the sums, one for each vector of rows."""

PALETTE = 1
"""The only one that there is: eight tiles of up to sixteen lines."""


@dataclass(frozen=True, slots=True)
class TileKernel(Kernel):
    """See `Tiled` for how weights lie. A unit is sixteen outputs.

    Attributes:
        index: LLVM's type of a column.
        panel: How activations are packed: as ``bfloat``, two or four vectors of sixteen rows.
    """

    index: str
    panel: RowPanel

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.panel.width

    def scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.scratch_bytes`: the panel's, and the activations of a tile."""
        return self.panel.scratch_bytes(inputs) + self.panel.vectors * TILE_BYTES

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.costs`: tiles, and a little for each unit."""
        return starts + np.arange(len(starts))

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        access = self.panel.access(function, STRIP, "bfloat")
        sums = function.variable(f"[{STRIP * self.panel.width} x float]")
        emit_configuration(function)
        units = function.integer("sdiv", function.add("%outputs", STRIP - 1), STRIP)
        with access.emit_runs(units) as bounds, function.loop(*bounds) as unit:
            first = function.multiply(unit, STRIP)
            left = function.smaller(function.integer("sub", "%outputs", first), STRIP)
            access.emit_prefetch(first, left)
            self._emit_unit(access, unit, sums)
            access.emit_results(sums, first, left)
        function.do("llvm.x86.tilerelease", [])
        return function

    def _emit_unit(self, access: Access, unit: str, sums: str) -> None:
        function, size = access.function, access.vector_bytes
        first, last = function.multiply(unit, STRIP), function.integer("sub", "%outputs", 1)
        with function.loop(0, STRIP) as output:
            bias = spread(function, "%bias", function.smaller(function.add(first, output), last), access.lanes)
            place = function.at(sums, function.multiply(output, access.feature_bytes))
            for number in range(access.vectors):
                function.store(access.kind, bias, function.at(place, number * size), size)
        for number in range(access.vectors):
            emit_tile(function, "tileloadd64", number, function.at(sums, number * size), access.feature_bytes)
        place = function.at("%starts", function.multiply(unit, 8))
        start, stop = function.load("i64", place), function.load("i64", function.at(place, 8))
        with function.loop(start, stop) as tile:
            self._emit_gathering(access, tile)
            self._emit_product(access, tile)
        for number in range(access.vectors):
            emit_tile(function, "tilestored64", number, function.at(sums, number * size), access.feature_bytes)

    def _emit_product(self, access: Access, tile: str) -> None:
        function = access.function
        weights = function.at("%values", function.multiply(tile, TILE_BYTES))
        emit_tile(function, "tileloadd64", WEIGHTS, weights, LINE_BYTES)
        for number in range(access.vectors):
            own = ACTIVATIONS + number % (TILES - ACTIVATIONS)
            emit_tile(function, "tileloadd64", own, function.at(access.room, number * TILE_BYTES), LINE_BYTES)
            function.do("llvm.x86.tdpbf16ps", [("i8", str(each)) for each in (number, WEIGHTS, own)])

    def _emit_gathering(self, access: Access, tile: str) -> None:
        """Put the activations of a tile's inputs together, two inputs in each line."""
        function, base = access.function, access.base("0")
        kind, bytes_of_index = vector("bfloat", 2 * access.lanes), int(self.index[1:]) // 8
        columns = function.at("%columns", function.multiply(tile, TILE_INPUTS * bytes_of_index))
        for line in range(TILE_INPUTS // 2):
            places = [
                access.place(base, function.index(self.index, function.at(columns, (2 * line + side) * bytes_of_index)))
                for side in range(2)
            ]
            for number in range(0, access.vectors, 2):
                left, right = (
                    function.load(kind, function.at(place, number // 2 * LINE_BYTES), LINE_BYTES) for place in places
                )
                for half, both in enumerate(zipped(function, left, right, access.lanes)):
                    goal = function.at(access.room, (number + half) * TILE_BYTES + line * LINE_BYTES)
                    function.store(kind, both, goal, LINE_BYTES)


def emit_configuration(function: Emitter) -> None:
    """Tell the processor that all tiles have sixteen lines of 64 bytes."""
    config = function.variable(vector("i8", LINE_BYTES), "zeroinitializer")
    function.store("i8", str(PALETTE), config)
    for tile in range(TILES):
        function.store("i16", str(LINE_BYTES), function.at(config, 16 + 2 * tile))
        function.store("i8", str(STRIP), function.at(config, 48 + tile))
    function.do("llvm.x86.ldtilecfg", [("ptr", config)])


def emit_tile(function: Emitter, what: str, tile: int, place: str, stride: int) -> None:
    """Move a tile from lines at a place (``tileloadd64``) or to them (``tilestored64``)."""
    function.do(f"llvm.x86.{what}", [("i8", str(tile)), ("ptr", place), ("i64", str(stride))])
