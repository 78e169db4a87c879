"""Panels of batch rows, which are transposed when activations are read and when results are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import loop_over_panels
from secateur.runtime.kernels.codegen.panel import ActivationPanel, PanelAccess
from secateur.runtime.kernels.codegen.transpose import QUAD, transpose_square
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, TYPE_BYTES, load_floats, split_floats, store_floats
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES

__all__ = ["RowPanel", "interleave_features"]


@dataclass(frozen=True, slots=True)
class RowPanel(ActivationPanel):
    """Consecutive batch rows, packed feature by feature.

    Attributes:
        activation_type: LLVM type of activations and results in memory: ``float`` or ``bfloat``.
        lanes: Number of rows in a vector.
        vectors: Number of vectors per feature. It is even if they are packed as ``bfloat``.
        packed_type: Type of the packed activations. ``float``, ``bfloat`` or ``halves``, which is two ``bfloat`` per
            float. With ``bfloat``, pairs of vectors alternate in runs of four lanes, as `interleave_features` expects.
    """

    activation_type: str
    lanes: int
    vectors: int
    packed_type: str = "float"

    @property
    def activation_bytes(self) -> int:
        """Size of an activation in memory, in bytes."""
        return TYPE_BYTES[self.activation_type]

    @property
    def packed_bytes(self) -> int:
        """Size of the packed activations of a feature, in bytes."""
        return self.width * TYPE_BYTES[self.packed_type]

    def get_scratch_bytes(self, inputs: int) -> int:
        """See `ActivationPanel.get_scratch_bytes`."""
        return inputs * self.packed_bytes

    def create_access(self, function: Emitter, outputs: int, weight_type: str) -> PanelAccess:
        """See `ActivationPanel.create_access`."""
        return RowPanelAccess(function, self, outputs, weight_type)


class RowPanelAccess(PanelAccess):
    """Packs activations into ``%scratch``, and writes results in square tiles."""

    def __init__(self, function: Emitter, panel: RowPanel, outputs: int, weight_type: str) -> None:
        super().__init__(function, panel, outputs, weight_type)
        self._element, self._size, self._width = panel.activation_type, panel.activation_bytes, panel.width
        self._packed_type, self._packed_bytes = panel.packed_type, panel.packed_bytes
        self._edge_buffer = function.alloca(f"[{outputs * panel.lanes} x {panel.activation_type}]")
        self._row = self._rows = ""

    @contextmanager
    def emit_panel_loop(self, units: str) -> Iterator[tuple[str, str]]:
        """See `PanelAccess.emit_panel_loop`."""
        function = self.function
        with loop_over_panels(function, units) as (number, bounds):
            self._row = function.mul(number, self._width)
            self._rows = function.smin(function.int_op("sub", "%batch", self._row), self._width)
            self._emit_packing()
            yield bounds

    def get_base(self, feature: str) -> str:
        """See `PanelAccess.get_base`."""
        return self.get_address("%scratch", feature)

    def get_address(self, base: str, number: str) -> str:
        """See `PanelAccess.get_address`."""
        return self.function.gep(base, self.function.mul(number, self._packed_bytes))

    def load_activations(self, address: str) -> list[str]:
        """See `PanelAccess.load_activations`."""
        addresses = [self.function.gep(address, number * self.vector_bytes) for number in range(self.vectors)]
        return [self.function.load(self.kind, source, self.vector_bytes) for source in addresses]

    @property
    def free_scratch(self) -> str:
        """See `PanelAccess.free_scratch`."""
        return self.get_base("%inputs")

    def emit_result_prefetch(self, first: str, count: str) -> None:
        """See `PanelAccess.emit_result_prefetch`."""
        function = self.function
        results, stride = self._get_results(first)
        step = CACHE_LINE_BYTES // self._size
        with function.loop(0, self._rows) as row, function.loop(0, count, step) as output:
            offset = function.add(function.mul(row, stride), function.mul(output, self._size))
            function.prefetch(function.gep(results, offset), is_written=True, level=2)

    def emit_results(self, memory: str, first: str, count: str) -> None:
        """See `PanelAccess.emit_results`."""
        function = self.function
        with function.loop(0, count, self.outputs) as output:
            left = function.smin(function.int_op("sub", count, output), self.outputs)
            sums = function.gep(memory, function.mul(output, self.feature_bytes))
            self._emit_output_results(sums, function.add(first, output), left)

    def _get_results(self, first: str) -> tuple[str, str]:
        """Return the address of the first row's results from an output on, and the size of a row in bytes."""
        function = self.function
        index = function.add(function.mul(self._row, "%outputs"), first)
        return function.gep("%y", function.mul(index, self._size)), function.mul("%outputs", self._size)

    def _emit_packing(self) -> None:
        """Fill the panel. Rows after the last row of the batch repeat it.

        A whole cache line of each row is read at once. Otherwise, if the length of rows maps many of them to the same
        cache sets, as 4096 does, they would evict each other before the second read.
        """
        function = self.function
        stride = function.mul("%inputs", self._size)
        source = function.gep("%x", function.mul(self._row, stride))
        last = function.int_op("sub", self._rows, 1)
        vectors_at_once = 2 if self._packed_type == "bfloat" else 1
        with function.loop(0, self.vectors, vectors_at_once) as number:
            first_row = function.mul(number, self.lanes)
            packed = function.gep("%scratch", function.mul(first_row, TYPE_BYTES[self._packed_type]))
            rows = []
            for lane in range(self.lanes * vectors_at_once):
                row = function.smin(function.add(first_row, lane), last)
                rows.append(function.gep(source, function.mul(row, stride)))
            last_start = function.int_op("sub", "%inputs", self.lanes)
            with function.if_then(f"icmp sge i64 {last_start}, 0"), function.loop(0, "%inputs", self.lanes) as feature:
                self._emit_square(rows, packed, function.smin(feature, last_start))
            with function.if_then(f"icmp slt i64 {last_start}, 0"), function.loop(0, "%inputs") as feature:
                self._emit_feature(rows, packed, feature)

    def _emit_square(self, rows: list[str], packed: str, feature: str) -> None:
        """Pack as many features as a vector has lanes. The last square overlaps the previous one."""
        function, lanes = self.function, self.lanes
        offset, target = function.mul(feature, self._size), self.get_address(packed, feature)
        floats = [load_floats(function, self._element, lanes, function.gep(row, offset)) for row in rows]
        firsts = range(0, len(rows), lanes)
        squares = [transpose_square(function, floats[first : first + lanes], lanes) for first in firsts]
        for number, columns in enumerate(zip(*squares, strict=True)):
            address = function.gep(target, number * self._packed_bytes)
            if self._packed_type == "halves":
                self._emit_split(columns[0], lanes, address)
            elif len(columns) == 1:
                function.store(self.kind, columns[0], address, self.vector_bytes)
            else:
                half = vector("i16", lanes)
                low, high = (function.round_to_bfloat16(lanes, column) for column in columns)
                interleaved = function.shuffle(half, low, high, get_interleaved_order(lanes))
                function.store(vector("i16", 2 * lanes), interleaved, address, self.vector_bytes)

    def _emit_feature(self, rows: list[str], packed: str, feature: str) -> None:
        """Pack one feature, one row at a time."""
        function = self.function
        offset, target = function.mul(feature, self._size), self.get_address(packed, feature)
        is_interleaved = self._packed_type == "bfloat"
        order = get_interleaved_order(self.lanes) if is_interleaved else list(range(len(rows)))
        for position, lane in enumerate(order):
            value = load_floats(function, self._element, 1, function.gep(rows[lane], offset))
            address = function.gep(target, position * TYPE_BYTES[self._packed_type])
            if self._packed_type == "halves":
                self._emit_split(value, 1, address)
            else:
                store_floats(function, self._packed_type, 1, value, address)

    def _emit_split(self, floats: str, lanes: int, address: str) -> None:
        """Store each float as two bfloat16 side by side."""
        function, half = self.function, vector("i16", lanes)
        order = [lane + side * lanes for lane in range(lanes) for side in range(2)]
        both = function.shuffle(half, *split_floats(function, floats, lanes), order)
        function.store(vector("i16", 2 * lanes), both, address, lanes * FLOAT_BYTES)

    def _emit_output_results(self, memory: str, first: str, count: str) -> None:
        """Write outputs together, at most `outputs` of them.

        Squares at the edge go through a buffer, so that nothing is written past the last row or output.
        """
        function = self.function
        results, stride = self._get_results(first)
        with function.loop(0, self.vectors) as number:
            first_row = function.mul(number, self.lanes)
            left = function.smin(function.int_op("sub", self._rows, first_row), self.lanes)
            target = function.gep(results, function.mul(first_row, stride))
            source = function.gep(memory, function.mul(first_row, FLOAT_BYTES))
            has_all_rows = function.assign(f"icmp eq i64 {left}, {self.lanes}")
            has_all_outputs = function.assign(f"icmp eq i64 {count}, {self.outputs}")
            is_full = function.assign(f"and i1 {has_all_rows}, {has_all_outputs}")
            address = function.assign(f"select i1 {is_full}, ptr {target}, ptr {self._edge_buffer}")
            step = function.assign(f"select i1 {is_full}, i64 {stride}, i64 {self.outputs * self._size}")
            self._emit_squares(source, address, step, first)
            with function.if_then(f"icmp eq i1 {is_full}, false"):
                self._emit_copy((left, count), target, stride)

    def _emit_squares(self, source: str, target: str, step: str, channel: str) -> None:
        function = self.function
        for first in range(0, self.outputs, self.lanes):
            count = min(self.lanes, self.outputs - first)
            results = [
                self.load_result(
                    function.gep(source, output * self.feature_bytes), function.add(channel, output), self.vector_bytes
                )
                for output in range(first, first + count)
            ]
            rows = transpose_square(function, [*results, *["zeroinitializer"] * (self.lanes - count)], self.lanes)
            for lane, row in enumerate(rows):
                part = row if count == self.lanes else function.shuffle(self.kind, row, "poison", range(count))
                address = function.gep(function.gep(target, function.mul(step, lane)), first * self._size)
                store_floats(function, self._element, count, part, address)

    def _emit_copy(self, sizes: tuple[str, str], target: str, stride: str) -> None:
        """Copy rows × outputs from the edge buffer to the results."""
        function = self.function
        with function.loop(0, sizes[0]) as row:
            source_row = function.gep(self._edge_buffer, function.mul(row, self.outputs * self._size))
            target_row = function.gep(target, function.mul(row, stride))
            with function.loop(0, sizes[1]) as output:
                offset = function.mul(output, self._size)
                value = function.load(self._element, function.gep(source_row, offset), self._size)
                function.store(self._element, value, function.gep(target_row, offset), self._size)


def get_interleaved_order(lanes: int) -> list[int]:
    """Return an order of the lanes of two concatenated vectors in which runs of four lanes of each alternate.

    Examples:
        >>> get_interleaved_order(8)
        [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]
    """
    starts = [side + first for first in range(0, lanes, QUAD) for side in (0, lanes)]
    return [start + lane for start in starts for lane in range(QUAD)]


def interleave_features(function: Emitter, left: str, right: str, lanes: int) -> list[str]:
    """Interleave two packed ``bfloat`` features, so that they are side by side. See `RowPanel.packed_type`.

    Returns:
        One vector of pairs for each of the two vectors of rows.
    """
    kind, pairs = vector("bfloat", 2 * lanes), []
    for half in (0, QUAD):
        rows = [first + lane for first in range(half, 2 * lanes, 2 * QUAD) for lane in range(QUAD)]
        pairs.append(function.shuffle(kind, left, right, [side + lane for lane in rows for side in (0, 2 * lanes)]))
    return pairs
