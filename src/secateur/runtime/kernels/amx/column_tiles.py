"""Sixteen outputs at a time, by a processor that multiplies whole tiles of bfloat16 (Intel's AMX).

A tile of weights has sixteen outputs and 32 inputs, any that one of the outputs keeps. Activations of these inputs are
put together beside it, two inputs of a row side by side, as the processor wants them. Of float32 it has sixteen inputs,
for the two halves of an activation lie side by side.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.amx.instructions import TILE_BYTES, TILES, emit_configuration, emit_product, emit_tile
from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import Kernel, begun
from secateur.runtime.kernels.codegen.panel import Access
from secateur.runtime.kernels.codegen.row_panel import RowPanel, zipped
from secateur.runtime.kernels.codegen.vectors import spread
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES, STRIP
from secateur.runtime.kernels.formats.column_tiles import TILE_INPUTS

__all__ = ["BrainTileKernel", "HalfTileKernel"]

WEIGHTS, ACTIVATIONS = 4, 5
"""Numbers of the first tiles that are multiplied; before them are the sums, one for each vector of rows."""


class TileKernel(Kernel):
    """See `Tiled` for how weights lie. A unit is some strips, whose results are written one after another.

    Attributes:
        index: LLVM's type of a column.
        panel: How activations are packed: two or four vectors of sixteen rows.
        inputs: Of a tile.
        grouped: Strips of a unit.
    """

    index: str
    panel: RowPanel
    inputs: ClassVar[int]
    grouped: ClassVar[int]

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.panel.width

    def scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.scratch_bytes`: the panel's, and a tile's activations and weights."""
        return self.panel.scratch_bytes(inputs) + (self.panel.vectors + 2) * TILE_BYTES

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.costs`: tiles, and a little for each strip."""
        total = len(starts) - 1
        ends = np.minimum(np.arange(0, total + self.grouped, self.grouped), total)
        return starts[ends] + ends

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        access = self.panel.access(function, STRIP, self.panel.element)
        sums = function.variable(f"[{self.grouped * STRIP * self.panel.width} x float]")
        emit_configuration(function)
        together = self.grouped * STRIP
        units = function.integer("sdiv", function.add("%outputs", together - 1), together)
        with access.emit_runs(units) as bounds, function.loop(*bounds) as unit:
            first = function.multiply(unit, together)
            left = function.smaller(function.integer("sub", "%outputs", first), together)
            access.emit_prefetch(first, left)
            with function.loop(0, left, STRIP) as output:
                own = function.at(sums, function.multiply(output, access.feature_bytes))
                self._emit_strip(access, function.add(first, output), own)
            access.emit_results(sums, first, left)
        function.do("llvm.x86.tilerelease", [])
        return function

    def _emit_strip(self, access: Access, first: str, sums: str) -> None:
        """Sixteen outputs from the first on."""
        function, size = access.function, access.vector_bytes
        last = function.integer("sub", "%outputs", 1)
        with function.loop(0, STRIP) as output:
            bias = spread(function, "%bias", function.smaller(function.add(first, output), last), access.lanes)
            place = function.at(sums, function.multiply(output, access.feature_bytes))
            for number in range(access.vectors):
                function.store(access.kind, bias, function.at(place, number * size), size)
        for number in range(access.vectors):
            emit_tile(function, "tileloadd64", number, function.at(sums, number * size), access.feature_bytes)
        place = function.at("%starts", function.multiply(function.integer("sdiv", first, STRIP), 8))
        start, stop = function.load("i64", place), function.load("i64", function.at(place, 8))
        with function.loop(start, stop) as tile:
            self.emit_products(access, tile)
        for number in range(access.vectors):
            emit_tile(function, "tilestored64", number, function.at(sums, number * size), access.feature_bytes)

    @abstractmethod
    def emit_products(self, access: Access, tile: str) -> None:
        """Add a tile's products to the sums."""

    def columns(self, access: Access, tile: str) -> list[str]:
        """Where the activations of a tile's inputs are."""
        function, base, size = access.function, access.base("0"), int(self.index[1:]) // 8
        first = function.at("%columns", function.multiply(tile, self.inputs * size))
        numbers = (function.index(self.index, function.at(first, line * size)) for line in range(self.inputs))
        return [access.place(base, number) for number in numbers]


@dataclass(frozen=True, slots=True)
class BrainTileKernel(TileKernel):
    """For weights and activations of bfloat16."""

    index: str
    panel: RowPanel
    inputs: ClassVar[int] = TILE_INPUTS
    grouped: ClassVar[int] = 1

    def emit_products(self, access: Access, tile: str) -> None:
        """See `TileKernel.emit_products`."""
        function = access.function
        self._emit_gathering(access, tile)
        weights = function.at("%values", function.multiply(tile, TILE_BYTES))
        emit_tile(function, "tileloadd64", WEIGHTS, weights, CACHE_LINE_BYTES)
        for number in range(access.vectors):
            own = ACTIVATIONS + number % (TILES - ACTIVATIONS)
            emit_tile(function, "tileloadd64", own, function.at(access.room, number * TILE_BYTES), CACHE_LINE_BYTES)
            emit_product(function, number, WEIGHTS, own)

    def _emit_gathering(self, access: Access, tile: str) -> None:
        """Put the activations of a tile's inputs together, two inputs in each line."""
        function, kind, places = access.function, vector("bfloat", 2 * access.lanes), self.columns(access, tile)
        for line in range(TILE_INPUTS // 2):
            for number in range(0, access.vectors, 2):
                left, right = (
                    function.load(kind, function.at(place, number // 2 * CACHE_LINE_BYTES), CACHE_LINE_BYTES)
                    for place in places[2 * line : 2 * line + 2]
                )
                for half, both in enumerate(zipped(function, left, right, access.lanes)):
                    goal = function.at(access.room, (number + half) * TILE_BYTES + line * CACHE_LINE_BYTES)
                    function.store(kind, both, goal, CACHE_LINE_BYTES)


@dataclass(frozen=True, slots=True)
class HalfTileKernel(TileKernel):
    """For weights and activations of float32, each as two halves of bfloat16.

    Two strips beside each other are up to 1.4 times as fast as one, at 90 % of zeros; of bfloat16 they gain nothing.
    """

    index: str
    panel: RowPanel
    inputs: ClassVar[int] = TILE_INPUTS // 2
    grouped: ClassVar[int] = 2

    def emit_products(self, access: Access, tile: str) -> None:
        """See `TileKernel.emit_products`."""
        function, kind = access.function, vector("i32", STRIP)
        weights = function.at(access.room, access.vectors * TILE_BYTES)
        self._emit_halves(access, tile, weights)
        for line, place in enumerate(self.columns(access, tile)):
            for number in range(access.vectors):
                some = function.load(kind, function.at(place, number * CACHE_LINE_BYTES), CACHE_LINE_BYTES)
                function.store(
                    kind,
                    some,
                    function.at(access.room, number * TILE_BYTES + line * CACHE_LINE_BYTES),
                    CACHE_LINE_BYTES,
                )
        for half in range(2):
            emit_tile(
                function, "tileloadd64", WEIGHTS + half, function.at(weights, half * TILE_BYTES), CACHE_LINE_BYTES
            )
        for number in range(access.vectors):
            own = WEIGHTS + 2 + number % 2
            emit_tile(function, "tileloadd64", own, function.at(access.room, number * TILE_BYTES), CACHE_LINE_BYTES)
            for half in range(2):
                emit_product(function, number, WEIGHTS + half, own)

    def _emit_halves(self, access: Access, tile: str, goal: str) -> None:
        """Each half of a weight twice, beside each other: one for each half of an activation."""
        function, kind = access.function, vector("i16", 2 * STRIP)
        source = function.at("%values", function.multiply(tile, TILE_BYTES))
        for line in range(STRIP):
            both = function.load(kind, function.at(source, line * CACHE_LINE_BYTES), CACHE_LINE_BYTES)
            for half in range(2):
                twice = function.shuffle(kind, both, "poison", [2 * (lane // 2) + half for lane in range(2 * STRIP)])
                function.store(
                    kind, twice, function.at(goal, half * TILE_BYTES + line * CACHE_LINE_BYTES), CACHE_LINE_BYTES
                )
