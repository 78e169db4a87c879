"""Multiply blocks of N outputs × M inputs by panels of activations, limited by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.kernel import Kernel, start_kernel
from secateur.runtime.kernels.codegen.panel import ActivationPanel, PanelAccess
from secateur.runtime.kernels.codegen.vectors import (
    FLOAT_BYTES,
    PREFETCH_BYTES,
    TYPE_BYTES,
    load_initial_sum,
    widen_weights,
)
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES
from secateur.runtime.kernels.formats.block import PREFETCH_BLOCKS

__all__ = ["BlockPanelKernel"]

LINE_FLOATS = CACHE_LINE_BYTES // FLOAT_BYTES
"""Number of floats in a cache line."""

TALL_BLOCK = 8
"""Smallest number of outputs in a tall block."""


@dataclass(frozen=True, slots=True)
class BlockPanelKernel(Kernel):
    """Multiplies blocks by panels. Its unit is a few rows of blocks.

    Attributes:
        rows: N, the number of outputs in a block.
        cols: M, the number of inputs in a block.
        index_type: LLVM type of a block's position in its row.
        panel: The panel.
        tile: Number of outputs that are computed together in registers, at most N.
        weight_type: LLVM type of the weights.
    """

    rows: int
    cols: int
    index_type: str
    panel: ActivationPanel
    tile: int
    weight_type: str = "float"

    @property
    def outputs_per_write(self) -> int:
        """Number of outputs that are transposed and written together, ideally a cache line."""
        return max(1, LINE_FLOATS // self.rows) * self.rows

    @property
    def rows_per_unit(self) -> int:
        """Number of rows of blocks in a unit, whose results are written one after another.

        Short blocks write two cache lines: their panels are wide, and writing to distant rows costs half as much with
        pairs of lines. Taller blocks do not get faster with two lines.
        """
        lines = 2 if self.rows < TALL_BLOCK else 1
        return max(1, lines * LINE_FLOATS // self.outputs_per_write) * self.outputs_per_write // self.rows

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.panel.width

    def get_scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.get_scratch_bytes`. It contains the panel, and a row of blocks as floats."""
        floats = (self.weight_type != "float") * inputs * self.rows * FLOAT_BYTES
        return self.panel.get_scratch_bytes(inputs) + floats

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.get_cumulative_costs`. The cost is the number of blocks, plus one per unit."""
        total = len(starts) - 1
        ends = np.minimum(np.arange(0, total + self.rows_per_unit, self.rows_per_unit), total)
        return starts[ends] + ends

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = start_kernel()
        access = self.panel.create_access(function, self.outputs_per_write, self.weight_type)
        # One more vector, because the last pixels of an image may be written past the end.
        sum_floats = self.rows_per_unit * self.rows * self.panel.width + self.panel.lanes
        memory = function.alloca(f"[{sum_floats} x float]")
        block_rows = function.int_op("sdiv", "%outputs", self.rows)
        units = function.int_op("sdiv", function.add(block_rows, self.rows_per_unit - 1), self.rows_per_unit)
        with access.emit_panel_loop(units) as bounds, function.loop(*bounds) as unit:
            begin = function.mul(unit, self.rows_per_unit)
            end = function.smin(function.add(begin, self.rows_per_unit), block_rows)
            first = function.mul(begin, self.rows)
            outputs = function.mul(function.int_op("sub", end, begin), self.rows)
            access.emit_result_prefetch(first, outputs)
            with function.loop(begin, end) as block_row:
                slot = function.mul(function.int_op("sub", block_row, begin), self.rows)
                self._emit_row(access, block_row, (memory, slot))
            access.emit_results(memory, first, outputs)
        return function

    def _emit_row(self, access: PanelAccess, block_row: str, target: tuple[str, str]) -> None:
        """Multiply a row of blocks. `target` is the address of the sums, and the index of its first output there."""
        function, (memory, slot) = access.function, target
        address = function.gep("%starts", function.mul(block_row, 8))
        bounds = function.load("i64", address), function.load("i64", function.gep(address, 8))
        output = function.mul(block_row, self.rows)
        size = self.rows * self.cols
        weight_bounds = function.mul(bounds[0], size), function.mul(bounds[1], size)
        floats = widen_weights(function, self.weight_type, weight_bounds, access.free_scratch)
        full_tiles = self.rows // self.tile * self.tile
        tiles = [(self.tile, 0, full_tiles)]
        tiles += [(self.rows - full_tiles, full_tiles, self.rows)] * (full_tiles < self.rows)
        for tile, first, last in tiles:
            with function.loop(first, last, tile) as inner:
                sums = self._create_sums(access, tile, function.add(output, inner))
                weights = function.gep(floats, function.mul(inner, FLOAT_BYTES))
                with function.loop(*bounds) as block:
                    self._emit_block(access, sums, block, weights)
                access.store_sums(memory, sums, function.add(slot, inner))

    def _create_sums(self, access: PanelAccess, tile: int, channel: str) -> list[list[str]]:
        """Create variables for the sums by output, then by vector, initialized with the bias of their channel."""
        function, sums = access.function, []
        for output in range(tile):
            initial = load_initial_sum(function, self.weight_type, function.add(channel, output), access.lanes)
            sums.append([function.alloca(access.kind, initial) for _ in range(access.vectors)])
        return sums

    def _emit_block(self, access: PanelAccess, sums: list[list[str]], block: str, weights: str) -> None:
        function = access.function
        features = self._get_feature_base(access, block)
        if self.rows < TALL_BLOCK:
            self._emit_activation_prefetch(access, block)
        size = self.rows * self.cols
        stored = function.gep("%values", function.mul(block, size * TYPE_BYTES[self.weight_type]))
        for line in range(0, size * TYPE_BYTES[self.weight_type], CACHE_LINE_BYTES):
            function.prefetch(function.gep(stored, PREFETCH_BYTES + line), level=2)
        first = function.gep(weights, function.mul(block, size * FLOAT_BYTES))
        unroll = next(count for count in (4, 3, 2, 1) if self.cols % count == 0)
        if unroll == self.cols:
            for offset in range(unroll):
                self._emit_column(access, sums, features, (first, str(offset)))
            return
        with function.loop(0, self.cols, unroll) as column:
            for offset in range(unroll):
                self._emit_column(access, sums, features, (first, function.add(column, offset)))

    def _get_feature_base(self, access: PanelAccess, block: str) -> str:
        """Return the base of a block's features. See `PanelAccess.get_base`."""
        function, index_bytes = access.function, int(self.index_type[1:]) // 8
        index = function.load_index(self.index_type, function.gep("%columns", function.mul(block, index_bytes)))
        return access.get_base(function.mul(index, self.cols))

    def _emit_activation_prefetch(self, access: PanelAccess, block: str) -> None:
        """Prefetch the activations of a later block. `BlockFormat.columns` is padded for the last blocks."""
        function = access.function
        base = self._get_feature_base(access, function.add(block, PREFETCH_BLOCKS))
        features = access.get_address(base, "0")
        for line in range(0, access.feature_bytes, CACHE_LINE_BYTES):
            function.prefetch(function.gep(features, line))

    def _emit_column(self, access: PanelAccess, sums: list[list[str]], features: str, weight: tuple[str, str]) -> None:
        function, lanes, (first, column) = access.function, access.lanes, weight
        activations = access.load_activations(access.get_address(features, column))
        weights = function.gep(first, function.mul(column, self.rows * FLOAT_BYTES))
        for output, totals in enumerate(sums):
            value = function.load("float", function.gep(weights, output * FLOAT_BYTES), FLOAT_BYTES)
            splat = function.splat("float", lanes, value)
            for total, vector in zip(totals, activations, strict=True):
                function.accumulate(lanes, splat, vector, total)
