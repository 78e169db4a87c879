"""Blocks of N outputs × M inputs times panels of activations: bound by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.emitter import Emitter, vector
from secateur.runtime.kernels.kernel import Kernel, begun, panels
from secateur.runtime.kernels.turning import (
    AHEAD,
    FLOAT_BYTES,
    LINE_BYTES,
    SIZES,
    Panel,
    Staged,
    emit_results,
    expanded,
    first_sum,
)

__all__ = ["FOLLOWING", "BlockKernel"]

LINE = 16
"""Floats of a cache line."""

FOLLOWING = 4
"""Blocks from the one at work to the one whose activations are asked for: 3 to 5 % for 4x1, nothing for 8x1."""

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
        """See `Kernel.scratch_bytes`: a panel, and a row of blocks as floats."""
        return inputs * (self.panel.feature_bytes + (self.stored != "float") * self.rows * FLOAT_BYTES)

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.costs`: blocks, and a little for each row of them."""
        total = len(starts) - 1
        ends = np.minimum(np.arange(0, total + self.grouped, self.grouped), total)
        return starts[ends] + ends

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        staged = Staged(function, self.panel, self.written, self.stored)
        memory = function.variable(f"[{self.grouped * self.rows * self.panel.width} x float]")
        block_rows = function.integer("sdiv", "%outputs", self.rows)
        groups = function.integer("sdiv", function.add(block_rows, self.grouped - 1), self.grouped)
        with panels(function, self.panel, groups) as run, function.loop(run.start, run.stop) as group:
            begin = function.multiply(group, self.grouped)
            end = function.smaller(function.add(begin, self.grouped), block_rows)
            outputs = function.multiply(function.integer("sub", end, begin), self.rows)
            staged.emit_prefetch((run.row, run.rows), (function.multiply(begin, self.rows), outputs))
            with function.loop(begin, end) as block_row:
                slot = function.multiply(function.integer("sub", block_row, begin), self.rows)
                self._emit_row(function, block_row, (staged, memory, slot))
            emit_results(function, staged, memory, (run.row, run.rows, function.multiply(begin, self.rows), outputs))
        return function

    def _emit_row(self, function: Emitter, block_row: str, where: tuple[Staged, str, str]) -> None:
        """One row of blocks, whose results are kept from a slot on."""
        staged, memory, slot = where
        place = function.at("%starts", function.multiply(block_row, 8))
        bounds = function.load("i64", place), function.load("i64", function.at(place, 8))
        output = function.multiply(block_row, self.rows)
        size = self.rows * self.cols
        room = function.at("%scratch", function.multiply("%inputs", self.panel.feature_bytes))
        floats = expanded(function, self.stored, self._times(function, bounds, size), room)
        whole = self.rows // self.tile * self.tile
        tiles = [(self.tile, 0, whole)] + [(self.rows - whole, whole, self.rows)] * (whole < self.rows)
        for tile, first, last in tiles:
            with function.loop(first, last, tile) as inner:
                sums = self._emit_bias(function, tile, function.add(output, inner))
                weights = function.at(floats, function.multiply(inner, FLOAT_BYTES))
                with function.loop(*bounds) as block:
                    self._emit_block(function, sums, block, weights)
                staged.emit_filling(memory, sums, function.add(slot, inner))

    def _emit_bias(self, function: Emitter, tile: int, channel: str) -> list[list[str]]:
        """Variables for the sums, of which each begins with its channel's bias: by outputs, then by vectors."""
        kind = vector("float", self.panel.lanes)
        sums = []
        for output in range(tile):
            first = first_sum(function, self.stored, function.add(channel, output), self.panel.lanes)
            sums.append([function.variable(kind, first) for _ in range(self.panel.vectors)])
        return sums

    def _times(self, function: Emitter, bounds: tuple[str, str], size: int) -> tuple[str, str]:
        return function.multiply(bounds[0], size), function.multiply(bounds[1], size)

    def _emit_block(self, function: Emitter, sums: list[list[str]], block: str, weights: str) -> None:
        features = self._features(function, block)
        if self.rows < HIGH:
            self._emit_prefetch(function, block)
        size = self.rows * self.cols
        stored = function.at("%values", function.multiply(block, size * SIZES[self.stored]))
        for line in range(0, size * SIZES[self.stored], LINE_BYTES):
            function.prefetch(function.at(stored, AHEAD + line), level=2)
        first = function.at(weights, function.multiply(block, size * FLOAT_BYTES))
        step = next(count for count in (4, 3, 2, 1) if self.cols % count == 0)
        if step == self.cols:
            for offset in range(step):
                self._emit_column(function, sums, features, (first, str(offset)))
            return
        with function.loop(0, self.cols, step) as column:
            for offset in range(step):
                self._emit_column(function, sums, features, (first, function.add(column, offset)))

    def _features(self, function: Emitter, block: str) -> str:
        """Where the activations of a block are."""
        bytes_of_index = int(self.index[1:]) // 8
        number = function.index(self.index, function.at("%columns", function.multiply(block, bytes_of_index)))
        return function.at("%scratch", function.multiply(number, self.cols * self.panel.feature_bytes))

    def _emit_prefetch(self, function: Emitter, block: str) -> None:
        """Ask for the activations of a block that comes soon; its column is there for the last blocks too."""
        features = self._features(function, function.add(block, FOLLOWING))
        for line in range(0, self.panel.feature_bytes, LINE * FLOAT_BYTES):
            function.prefetch(function.at(features, line))

    def _emit_column(self, function: Emitter, sums: list[list[str]], features: str, weight: tuple[str, str]) -> None:
        first, column = weight
        lanes, kind = self.panel.lanes, vector("float", self.panel.lanes)
        place = function.at(features, function.multiply(column, self.panel.feature_bytes))
        inputs = [
            function.load(kind, function.at(place, number * lanes * FLOAT_BYTES), lanes * FLOAT_BYTES)
            for number in range(self.panel.vectors)
        ]
        numbers = function.at(first, function.multiply(column, self.rows * FLOAT_BYTES))
        for output, totals in enumerate(sums):
            value = function.load("float", function.at(numbers, output * FLOAT_BYTES), FLOAT_BYTES)
            splat = function.splat("float", lanes, value)
            for total, some in zip(totals, inputs, strict=True):
                function.put(kind, function.fused(lanes, splat, some, function.get(kind, total)), total)
