"""Blocks of N outputs × M inputs times panels of activations: bound by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.runtime.kernels.emitter import Emitter, vector
from secateur.runtime.kernels.turning import FLOAT_BYTES, Panel, store_tile

__all__ = ["BlockKernel"]

PARAMETERS = {
    "starts": "ptr",
    "columns": "ptr",
    "values": "ptr",
    "bias": "ptr",
    "x": "ptr",
    "y": "ptr",
    "scratch": "ptr",
    "batch": "i64",
    "inputs": "i64",
    "outputs": "i64",
    "begin": "i64",
    "end": "i64",
}


@dataclass(frozen=True, slots=True)
class BlockKernel:
    """The generator of one kernel.

    Work is numbered panel by panel, and within a panel by rows of blocks; a call does a run of it.

    Attributes:
        rows: N, outputs of a block.
        cols: M, inputs of a block.
        index: LLVM's type of a block's number within its row.
        panel: How activations are packed.
        tile: Outputs that are computed together; at most N.
    """

    rows: int
    cols: int
    index: str
    panel: Panel
    tile: int

    def emit(self) -> Emitter:
        """The kernel, called ``run``."""
        function = Emitter("run", PARAMETERS)
        block_rows = function.integer("sdiv", "%outputs", self.rows)
        first = function.integer("sdiv", "%begin", block_rows)
        last = function.integer("sdiv", function.add("%end", function.integer("sub", block_rows, 1)), block_rows)
        with function.loop(first, last) as number:
            done = function.multiply(number, block_rows)
            start = function.larger(function.integer("sub", "%begin", done), 0)
            stop = function.smaller(function.integer("sub", "%end", done), block_rows)
            row = function.multiply(number, self.panel.width)
            count = function.smaller(function.integer("sub", "%batch", row), self.panel.width)
            source = function.at("%x", function.multiply(function.multiply(row, "%inputs"), self.panel.size))
            self.panel.emit_packing(function, source, "%scratch", count)
            with function.loop(start, stop) as block_row:
                self._emit_row(function, block_row, row, count)
        return function

    def _emit_row(self, function: Emitter, block_row: str, row: str, count: str) -> None:
        place = function.at("%starts", function.multiply(block_row, 8))
        bounds = function.load("i64", place), function.load("i64", function.at(place, 8))
        output = function.multiply(block_row, self.rows)
        whole = self.rows // self.tile * self.tile
        with function.loop(0, whole, self.tile) as inner:
            self._emit_tile(function, self.tile, bounds, (output, inner, row, count))
        if whole < self.rows:
            self._emit_tile(function, self.rows - whole, bounds, (output, str(whole), row, count))

    def _emit_tile(
        self, function: Emitter, tile: int, bounds: tuple[str, str], where: tuple[str, str, str, str]
    ) -> None:
        output, inner, row, count = where
        channel = function.add(output, inner)
        sums = self._emit_bias(function, tile, channel)
        weights = function.at("%values", function.multiply(inner, FLOAT_BYTES))
        with function.loop(*bounds) as block:
            self._emit_block(function, sums, block, weights)
        kind = vector("float", self.panel.lanes)
        final = [[function.get(kind, total) for total in totals] for totals in sums]
        place = function.add(function.multiply(row, "%outputs"), channel)
        goal = function.at("%y", function.multiply(place, self.panel.size))
        self._emit_store(function, final, goal, count)

    def _emit_bias(self, function: Emitter, tile: int, channel: str) -> list[list[str]]:
        """Variables for the sums, of which each begins with its channel's bias: by outputs, then by vectors."""
        kind = vector("float", self.panel.lanes)
        place = function.at("%bias", function.multiply(channel, FLOAT_BYTES))
        sums = []
        for output in range(tile):
            bias = function.load("float", function.at(place, output * FLOAT_BYTES), FLOAT_BYTES)
            splat = function.splat("float", self.panel.lanes, bias)
            sums.append([function.variable(kind, splat) for _ in range(self.panel.vectors)])
        return sums

    def _emit_block(self, function: Emitter, sums: list[list[str]], block: str, weights: str) -> None:
        bytes_of_index = int(self.index[1:]) // 8
        number = function.index(self.index, function.at("%columns", function.multiply(block, bytes_of_index)))
        features = function.at("%scratch", function.multiply(number, self.cols * self.panel.feature_bytes))
        first = function.at(weights, function.multiply(block, self.rows * self.cols * FLOAT_BYTES))
        step = next(count for count in (4, 3, 2, 1) if self.cols % count == 0)
        if step == self.cols:
            for offset in range(step):
                self._emit_column(function, sums, features, (first, str(offset)))
            return
        with function.loop(0, self.cols, step) as column:
            for offset in range(step):
                self._emit_column(function, sums, features, (first, function.add(column, offset)))

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

    def _emit_store(self, function: Emitter, tile: list[list[str]], goal: str, count: str) -> None:
        """Whole panels go to their place at once; of others as many rows as there are, through the stack."""
        stride = function.multiply("%outputs", self.panel.size)
        with function.when(f"icmp eq i64 {count}, {self.panel.width}"):
            self._emit_vectors(function, tile, goal, stride)
        with function.when(f"icmp slt i64 {count}, {self.panel.width}"):
            bytes_of_row = len(tile) * self.panel.size
            stack = function.variable(f"[{self.panel.width * bytes_of_row} x i8]")
            self._emit_vectors(function, tile, stack, str(bytes_of_row))
            with function.loop(0, count) as row:
                source = function.at(stack, function.multiply(row, bytes_of_row))
                kind = vector(self.panel.element, len(tile))
                found = function.load(kind, source, self.panel.size)
                function.store(kind, found, function.at(goal, function.multiply(row, stride)), self.panel.size)

    def _emit_vectors(self, function: Emitter, tile: list[list[str]], goal: str, stride: str) -> None:
        for number in range(self.panel.vectors):
            rows = function.at(goal, function.multiply(stride, number * self.panel.lanes))
            some = [totals[number] for totals in tile]
            store_tile(function, self.panel.element, some, self.panel.lanes, rows, stride)
