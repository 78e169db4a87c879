"""Blocks of N outputs × M inputs times panels of activations: bound by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.kernel import Kernel, begun
from secateur.runtime.kernels.codegen.panel import Access, Panel
from secateur.runtime.kernels.codegen.vectors import AHEAD, FLOAT_BYTES, SIZES, expanded, first_sum
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES
from secateur.runtime.kernels.formats.block import FOLLOWING

__all__ = ["BlockKernel"]

LINE = 16
"""Floats of a cache line."""

HIGH = 8
"""Outputs of a high block."""


@dataclass(frozen=True, slots=True)
class BlockKernel(Kernel):
    """Whose units are groups of rows of blocks.

    Attributes:
        rows: N, outputs of a block.
        cols: M, inputs of a block.
        index: LLVM's type of a block's number within its row.
        panel: How activations are packed.
        tile: Outputs that are computed together; at most N.
        stored: LLVM's type of the weights.
    """

    rows: int
    cols: int
    index: str
    panel: Panel
    tile: int
    stored: str = "float"

    @property
    def written(self) -> int:
        """Outputs that are turned and written together, a line of the cache at best."""
        return max(1, LINE // self.rows) * self.rows

    @property
    def grouped(self) -> int:
        """Rows of blocks whose results are written one after another.

        Two lines of the cache for low blocks: their panels are wide, and rows of results far from each other come
        from memory at half the price in pairs. Higher blocks gain nothing by it.
        """
        return max(1, (2 if self.rows < HIGH else 1) * LINE // self.written) * self.written // self.rows

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.panel.width

    def scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.scratch_bytes`: the panel's, and a row of blocks as floats."""
        return self.panel.scratch_bytes(inputs) + (self.stored != "float") * inputs * self.rows * FLOAT_BYTES

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.costs`: blocks, and a little for each row of them."""
        total = len(starts) - 1
        ends = np.minimum(np.arange(0, total + self.grouped, self.grouped), total)
        return starts[ends] + ends

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        access = self.panel.access(function, self.written, self.stored)
        kept = (
            self.grouped * self.rows * self.panel.width + self.panel.lanes
        )  # A vector of the last pixels ends behind it.
        memory = function.variable(f"[{kept} x float]")
        block_rows = function.integer("sdiv", "%outputs", self.rows)
        groups = function.integer("sdiv", function.add(block_rows, self.grouped - 1), self.grouped)
        with access.emit_runs(groups) as bounds, function.loop(*bounds) as group:
            begin = function.multiply(group, self.grouped)
            end = function.smaller(function.add(begin, self.grouped), block_rows)
            first = function.multiply(begin, self.rows)
            outputs = function.multiply(function.integer("sub", end, begin), self.rows)
            access.emit_prefetch(first, outputs)
            with function.loop(begin, end) as block_row:
                slot = function.multiply(function.integer("sub", block_row, begin), self.rows)
                self._emit_row(access, block_row, (memory, slot))
            access.emit_results(memory, first, outputs)
        return function

    def _emit_row(self, access: Access, block_row: str, where: tuple[str, str]) -> None:
        """One row of blocks, whose results are kept from a slot of memory on."""
        function, (memory, slot) = access.function, where
        place = function.at("%starts", function.multiply(block_row, 8))
        bounds = function.load("i64", place), function.load("i64", function.at(place, 8))
        output = function.multiply(block_row, self.rows)
        size = self.rows * self.cols
        floats = expanded(function, self.stored, self._times(function, bounds, size), access.room)
        whole = self.rows // self.tile * self.tile
        tiles = [(self.tile, 0, whole)] + [(self.rows - whole, whole, self.rows)] * (whole < self.rows)
        for tile, first, last in tiles:
            with function.loop(first, last, tile) as inner:
                sums = self._sums(access, tile, function.add(output, inner))
                weights = function.at(floats, function.multiply(inner, FLOAT_BYTES))
                with function.loop(*bounds) as block:
                    self._emit_block(access, sums, block, weights)
                access.emit_keeping(memory, sums, function.add(slot, inner))

    def _sums(self, access: Access, tile: int, channel: str) -> list[list[str]]:
        """Variables for the sums, of which each begins with its channel's bias: by outputs, then by vectors."""
        function, sums = access.function, []
        for output in range(tile):
            first = first_sum(function, self.stored, function.add(channel, output), access.lanes)
            sums.append([function.variable(access.kind, first) for _ in range(access.vectors)])
        return sums

    def _times(self, function: Emitter, bounds: tuple[str, str], size: int) -> tuple[str, str]:
        return function.multiply(bounds[0], size), function.multiply(bounds[1], size)

    def _emit_block(self, access: Access, sums: list[list[str]], block: str, weights: str) -> None:
        function = access.function
        features = self._features(access, block)
        if self.rows < HIGH:
            self._emit_prefetch(access, block)
        size = self.rows * self.cols
        stored = function.at("%values", function.multiply(block, size * SIZES[self.stored]))
        for line in range(0, size * SIZES[self.stored], CACHE_LINE_BYTES):
            function.prefetch(function.at(stored, AHEAD + line), level=2)
        first = function.at(weights, function.multiply(block, size * FLOAT_BYTES))
        step = next(count for count in (4, 3, 2, 1) if self.cols % count == 0)
        if step == self.cols:
            for offset in range(step):
                self._emit_column(access, sums, features, (first, str(offset)))
            return
        with function.loop(0, self.cols, step) as column:
            for offset in range(step):
                self._emit_column(access, sums, features, (first, function.add(column, offset)))

    def _features(self, access: Access, block: str) -> str:
        """The base of a block's features."""
        function, bytes_of_index = access.function, int(self.index[1:]) // 8
        number = function.index(self.index, function.at("%columns", function.multiply(block, bytes_of_index)))
        return access.base(function.multiply(number, self.cols))

    def _emit_prefetch(self, access: Access, block: str) -> None:
        """Ask for the activations of a block that comes soon; its column is there for the last blocks too."""
        function = access.function
        features = access.place(self._features(access, function.add(block, FOLLOWING)), "0")
        for line in range(0, access.feature_bytes, CACHE_LINE_BYTES):
            function.prefetch(function.at(features, line))

    def _emit_column(self, access: Access, sums: list[list[str]], features: str, weight: tuple[str, str]) -> None:
        function, lanes, (first, column) = access.function, access.lanes, weight
        inputs = access.loaded(access.place(features, column))
        numbers = function.at(first, function.multiply(column, self.rows * FLOAT_BYTES))
        for output, totals in enumerate(sums):
            value = function.load("float", function.at(numbers, output * FLOAT_BYTES), FLOAT_BYTES)
            splat = function.splat("float", lanes, value)
            for total, some in zip(totals, inputs, strict=True):
                function.put(access.kind, function.fused(lanes, splat, some, function.get(access.kind, total)), total)
