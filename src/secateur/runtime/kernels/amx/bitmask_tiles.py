"""Multiply weights in the bitmask format by large batches with AMX.

A float32 is approximately the sum of two bfloat16: the value rounded to eight bits, and the difference rounded to eight
bits. The product of two floats is approximately the sum of three products of these parts. Only the product of the two
low parts is omitted. Tiles multiply sixteen times as fast as float vectors. Weights are decoded, including the zeros,
once for all rows of a panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.amx.instructions import (
    BFLOAT16_LINE,
    TILE_BYTES,
    emit_expanded_line,
    emit_tile_config,
    emit_tile_load,
    emit_tile_product,
    emit_tile_store,
)
from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import Kernel, loop_over_panels, start_kernel
from secateur.runtime.kernels.codegen.vectors import (
    FLOAT_BYTES,
    FLOATS,
    TYPE_BYTES,
    split_floats,
    store_first_floats,
)
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES, STRIP
from secateur.runtime.kernels.formats.column_tiles import TILE_INPUTS

__all__ = ["TILE_PAIR", "BitmaskTileKernel"]

BLOCK_TILES = 2
"""Number of tiles of rows, and of outputs, that are multiplied together (register blocking)."""

TILE_PAIR = BLOCK_TILES * STRIP
"""Number of rows, and of outputs, in a register block."""

ACTIVATIONS, WEIGHTS = 4, 6
"""First tile registers of activations and weights. The registers before them contain the sums."""

HIGH, LOW = 0, 1
"""Parts of a float32."""

PREFETCH_ROWS = 4
"""Distance in rows to the activations to prefetch. Packing then takes 0.7 times as long."""

BFLOAT16_ORDER = (
    ((WEIGHTS, 0, HIGH), ()),
    ((ACTIVATIONS, 0, HIGH), ((0, 0),)),
    ((WEIGHTS, 1, HIGH), ((0, 1),)),
    ((ACTIVATIONS, 1, HIGH), ((1, 0), (1, 1))),
)
"""Tiles to load (register, side, part) for bfloat16, and the products (rows, outputs) after each load."""

FLOAT32_ORDER = (
    ((WEIGHTS, 0, HIGH), ()),
    ((ACTIVATIONS, 0, LOW), ((0, 0),)),
    ((ACTIVATIONS, 1, LOW), ((1, 0),)),
    ((WEIGHTS, 1, HIGH), ((0, 1),)),
    ((ACTIVATIONS, 0, HIGH), ((1, 1),)),
    ((ACTIVATIONS, 1, HIGH), ((0, 0), (1, 0), (0, 1), (1, 1))),
    ((WEIGHTS, 0, LOW), ((0, 0), (1, 0))),
    ((WEIGHTS, 1, LOW), ((0, 1), (1, 1))),
)
"""The same for float32. Each tile is loaded once, in most cases two products before it is needed."""


class PanelPiece(NamedTuple):
    """A piece of the features of a panel of rows.

    Attributes:
        row: First row.
        rows: Number of rows.
        feature: First feature.
        features: Number of features.
    """

    row: str
    rows: str
    feature: str
    features: str


@dataclass(frozen=True, slots=True)
class BitmaskTileKernel(Kernel):
    """Multiplies weights in `BitmaskFormat` by large batches. Its unit is a chunk of outputs.

    Attributes:
        activation_type: LLVM type of activations and weights. ``float`` is split into two bfloat16.
        rows: Number of rows in a panel, a multiple of 32.
        panel_features: Number of features in a panel. If a panel does not contain all features, the results store the
            float32 sums in between. bfloat16 results would round the sums, so a bfloat16 panel must contain all
            features.
        chunk: Number of outputs in a unit, whose results are written together.
        piece: Number of features whose weights are decoded at once. `panel_features` is a multiple of it.
    """

    activation_type: str
    rows: int
    panel_features: int
    chunk: int
    piece: int

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.rows

    def get_scratch_bytes(self, inputs: int) -> int:  # noqa: ARG002
        """See `Kernel.get_scratch_bytes`. It contains a panel, decoded weights, and the sums of a unit."""
        return self._sums_offset + self.rows * self.chunk * FLOAT_BYTES

    @property
    def activation_bytes(self) -> int:
        """Size of an activation in bytes, even if it is split."""
        return TYPE_BYTES[self.activation_type]

    @property
    def _tile_step(self) -> int:
        """Size in bytes of the tiles for sixteen rows or outputs and 32 features: one tile, or one for each part."""
        return TILE_BYTES * self.activation_bytes // TYPE_BYTES["bfloat"]

    @property
    def _weights_offset(self) -> int:
        """Offset of the decoded weights in the scratch memory, in bytes."""
        return self.rows * self.panel_features * self.activation_bytes

    @property
    def _sums_offset(self) -> int:
        """Offset of the sums in the scratch memory, in bytes."""
        return self._weights_offset + TILE_PAIR * self.piece * self.activation_bytes

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:
        """See `Kernel.get_cumulative_costs`. All units cost the same, because zeros are multiplied too."""
        return np.arange((len(starts) - 1) * STRIP // (-(-inputs // self.piece) * self.chunk) + 1)

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = start_kernel()
        emit_tile_config(function)
        units = function.int_op("sdiv", function.add("%outputs", self.chunk - 1), self.chunk)
        with loop_over_panels(function, units) as (number, bounds):
            row = function.mul(number, self.rows)
            rows = function.smin(function.int_op("sub", "%batch", row), self.rows)
            with function.loop(0, "%inputs", self.panel_features) as feature:
                features = function.smin(function.int_op("sub", "%inputs", feature), self.panel_features)
                panel = PanelPiece(row, rows, feature, features)
                self._emit_packing(function, panel)
                with function.loop(*bounds) as unit:
                    self._emit_unit(function, panel, function.mul(unit, self.chunk))
        function.call_void("llvm.x86.tilerelease", [])
        return function

    def _emit_packing(self, function: Emitter, panel: PanelPiece) -> None:
        """Pack activations into tiles, and split floats. Rows after the last one repeat it."""
        last = function.int_op("sub", panel.rows, 1)
        with function.loop(0, round_up(function, panel.rows, TILE_PAIR)) as line:
            row = function.add(panel.row, function.smin(line, last))
            first = function.add(function.mul(row, "%inputs"), panel.feature)
            source = function.gep("%x", function.mul(first, self.activation_bytes))
            target = get_tile_row(function, "%scratch", line, self.panel_features * self.activation_bytes)
            with function.loop(0, panel.features, TILE_INPUTS) as feature:
                activations = function.gep(source, function.mul(feature, self.activation_bytes))
                later = function.gep(activations, function.mul("%inputs", PREFETCH_ROWS * self.activation_bytes))
                for offset in range(0, TILE_INPUTS * self.activation_bytes, CACHE_LINE_BYTES):
                    function.prefetch(function.gep(later, offset))
                left = function.int_op("sub", panel.features, feature)
                tile_row = function.gep(target, self._get_tile_offset(function, feature))
                self._emit_tile_row(function, activations, left, tile_row)

    def _emit_tile_row(self, function: Emitter, source: str, left: str, target: str) -> None:
        """Pack the first `left` activations of a tile row, and set the others to zero."""
        if self.activation_type == "bfloat":
            line = function.load_first(2 * STRIP, source, left, "i16")
            function.store(BFLOAT16_LINE, line, target, CACHE_LINE_BYTES)
            return
        sides = []
        for side in range(2):
            count = function.int_op("sub", left, side * STRIP)
            floats = function.load_first(STRIP, function.gep(source, side * CACHE_LINE_BYTES), count)
            sides.append(split_floats(function, floats, STRIP))
        for number, (left_side, right_side) in enumerate(zip(*sides, strict=True)):
            line = function.shuffle(vector("i16", STRIP), left_side, right_side, range(2 * STRIP))
            function.store(BFLOAT16_LINE, line, function.gep(target, number * TILE_BYTES), CACHE_LINE_BYTES)

    def _get_tile_offset(self, function: Emitter, feature: str, tiles: int = 1) -> str:
        """Return the offset in bytes of the tiles of a feature, if the tiles of `tiles` strips alternate."""
        return function.mul(feature, tiles * self._tile_step // TILE_INPUTS)

    def _emit_unit(self, function: Emitter, panel: PanelPiece, output: str) -> None:
        weights, sums = function.gep("%scratch", self._weights_offset), function.gep("%scratch", self._sums_offset)
        outputs = function.smin(function.int_op("sub", "%outputs", output), self.chunk)
        self._emit_initial_sums(function, panel, (output, outputs, sums))
        pieces = function.int_op("sdiv", function.add("%inputs", self.piece - 1), self.piece)
        chunk = function.int_op("sdiv", output, self.chunk)
        with function.loop(0, panel.features, self.piece) as offset:
            count = function.smin(function.int_op("sub", panel.features, offset), self.piece)
            number = function.int_op("sdiv", function.add(panel.feature, offset), self.piece)
            run = function.mul(function.add(function.mul(chunk, pieces), number), self.chunk // STRIP)
            source = function.gep("%scratch", self._get_tile_offset(function, offset))
            with function.loop(0, outputs, TILE_PAIR) as first:
                strip = function.add(run, function.int_op("sdiv", first, STRIP))
                for side in range(BLOCK_TILES):
                    target = function.gep(weights, side * self._tile_step)
                    self._emit_decoding(function, (function.add(strip, side), count), target)
                block_sums = function.gep(sums, function.mul(first, STRIP * FLOAT_BYTES))
                with function.loop(0, panel.rows, TILE_PAIR) as row:
                    row_bytes = self.panel_features * self.activation_bytes
                    activations = function.gep(source, function.mul(row, row_bytes))
                    totals = function.gep(block_sums, function.mul(row, self.chunk * FLOAT_BYTES))
                    self._emit_products(function, (activations, weights, totals), count)
        self._emit_results(function, panel, (output, outputs, sums))

    def _emit_decoding(self, function: Emitter, strip: tuple[str, str], target: str) -> None:
        """Decode a piece of a strip into tiles, two features per row of a tile.

        Args:
            function: The function under construction.
            strip: Index of the strip over all pieces and chunks, and its number of features.
            target: Address of the first tile. The tiles of `BLOCK_TILES` strips alternate.
        """
        run, features = strip
        start = function.load("i64", function.gep("%starts", function.mul(run, 8)))
        pointer = function.alloca("ptr", function.gep("%values", function.mul(start, self.activation_bytes)))
        masks = function.gep("%columns", function.mul(run, self.piece * 2))
        with function.loop(0, features, TILE_INPUTS) as feature:
            tile = function.gep(target, self._get_tile_offset(function, feature, BLOCK_TILES))
            tile_masks = function.gep(masks, function.mul(feature, 2))
            with function.loop(0, STRIP) as line:
                mask = function.gep(tile_masks, function.mul(line, 4))
                for number, part in enumerate(emit_expanded_line(function, pointer, mask, self.activation_type)):
                    row = function.gep(tile, function.mul(line, CACHE_LINE_BYTES))
                    function.store(BFLOAT16_LINE, part, function.gep(row, number * TILE_BYTES), CACHE_LINE_BYTES)

    def _emit_products(self, function: Emitter, operands: tuple[str, str, str], features: str) -> None:
        """Multiply two tiles of rows by two tiles of outputs.

        Args:
            function: The function under construction.
            operands: Addresses of the activations, the weights and the sums.
            features: Number of features.
        """
        activations, weights, sums = operands
        tiles = [(row, output) for row in range(BLOCK_TILES) for output in range(BLOCK_TILES)]
        sum_tiles = [function.gep(sums, (row * self.chunk // STRIP + output) * TILE_BYTES) for row, output in tiles]
        for number, address in enumerate(sum_tiles):
            emit_tile_load(function, number, address, CACHE_LINE_BYTES)
        order = FLOAT32_ORDER if self.activation_type == "float" else BFLOAT16_ORDER
        with function.loop(0, features, TILE_INPUTS) as feature:
            activation_tiles = function.gep(activations, self._get_tile_offset(function, feature))
            weight_tiles = function.gep(weights, self._get_tile_offset(function, feature, BLOCK_TILES))
            activation_stride = STRIP * self.panel_features * self.activation_bytes
            for (register, side, part), products in order:
                is_weight = register == WEIGHTS
                base, stride = (weight_tiles, self._tile_step) if is_weight else (activation_tiles, activation_stride)
                address = function.gep(base, side * stride + part * TILE_BYTES)
                emit_tile_load(function, register + side, address, CACHE_LINE_BYTES)
                for row, output in products:
                    emit_tile_product(function, BLOCK_TILES * row + output, ACTIVATIONS + row, WEIGHTS + output)
        for number, address in enumerate(sum_tiles):
            emit_tile_store(function, number, address, CACHE_LINE_BYTES)

    def _emit_initial_sums(self, function: Emitter, panel: PanelPiece, unit: tuple[str, str, str]) -> None:
        """Initialize the sums of a unit with the bias, or with the previous results if this is not the first piece.

        Args:
            function: The function under construction.
            panel: The activations.
            unit: First output, number of outputs, and address of the sums.
        """
        output, outputs, sums = unit
        is_first = function.assign(f"icmp eq i64 {panel.feature}, 0")
        bias = function.gep("%bias", function.mul(output, FLOAT_BYTES))
        results = self._get_result_address(function, panel.row, output)
        source = function.assign(f"select i1 {is_first}, ptr {bias}, ptr {results}")
        stride = function.assign(f"select i1 {is_first}, i64 0, i64 {function.mul('%outputs', FLOAT_BYTES)}")
        with function.loop(0, panel.rows) as row:
            source_row = function.gep(source, function.mul(row, stride))
            sum_row = get_tile_row(function, sums, row, self.chunk * FLOAT_BYTES)
            with function.loop(0, outputs, STRIP) as first:
                left = function.int_op("sub", outputs, first)
                address = function.gep(source_row, function.mul(first, FLOAT_BYTES))
                initial = function.load_first(STRIP, address, left)
                target = function.gep(sum_row, function.mul(first, STRIP * FLOAT_BYTES))
                function.store(FLOATS, initial, target, CACHE_LINE_BYTES)

    def _emit_results(self, function: Emitter, panel: PanelPiece, unit: tuple[str, str, str]) -> None:
        """Write the sums of a unit to ``%y``. See `_emit_initial_sums` for the arguments."""
        output, outputs, sums = unit
        results = self._get_result_address(function, panel.row, output)
        stride = function.mul("%outputs", self.activation_bytes)
        with function.loop(0, panel.rows) as row:
            result_row = function.gep(results, function.mul(row, stride))
            sum_row = get_tile_row(function, sums, row, self.chunk * FLOAT_BYTES)
            with function.loop(0, outputs, STRIP) as first:
                address = function.gep(sum_row, function.mul(first, STRIP * FLOAT_BYTES))
                totals = function.load(FLOATS, address, CACHE_LINE_BYTES)
                target = function.gep(result_row, function.mul(first, self.activation_bytes))
                left = function.int_op("sub", outputs, first)
                store_first_floats(function, self.activation_type, STRIP, totals, target, left)

    def _get_result_address(self, function: Emitter, row: str, output: str) -> str:
        index = function.add(function.mul(row, "%outputs"), output)
        return function.gep("%y", function.mul(index, self.activation_bytes))


def get_tile_row(function: Emitter, tiles: str, row: str, row_bytes: int) -> str:
    """Return the address of a row in its first tile.

    Args:
        function: The function under construction.
        tiles: Address of tiles of sixteen rows each.
        row: Index of the row.
        row_bytes: Size of a row in all of its tiles, in bytes.
    """
    tile, inner = function.int_op("sdiv", row, STRIP), function.int_op("srem", row, STRIP)
    first = function.gep(tiles, function.mul(tile, STRIP * row_bytes))
    return function.gep(first, function.mul(inner, CACHE_LINE_BYTES))


def round_up(function: Emitter, count: str, step: int) -> str:
    """Round a number up to a multiple of `step`."""
    return function.mul(function.int_op("sdiv", function.add(count, step - 1), step), step)
