"""Multiply blocks of N outputs × M inputs by a small batch, limited by memory bandwidth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import SmallBatchKernel, start_kernel
from secateur.runtime.kernels.codegen.vectors import (
    FLOAT_BYTES,
    PREFETCH_BYTES,
    TYPE_BYTES,
    load_floats,
    reduce_lanes,
    store_floats,
)
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES

__all__ = ["BlockSmallBatchKernel"]

ACCUMULATORS = 8
"""Number of independent sums, to hide the latency of FMAs."""


@dataclass(frozen=True, slots=True)
class BlockSmallBatchKernel(SmallBatchKernel):
    """Multiplies blocks by activations that are read in place. Its unit is a row of blocks.

    Vector lanes are the outputs of a block, or its inputs if it has a single output.

    Attributes:
        rows: N, the number of outputs in a block.
        cols: M, the number of inputs in a block.
        index_type: LLVM type of a block's position in its row.
        activation_type: LLVM type of activations.
        batch: Number of batch rows.
        lanes: Number of floats in the widest vector of the processor.
        weight_type: LLVM type of the weights.
    """

    rows: int
    cols: int
    index_type: str
    activation_type: str
    batch: int
    lanes: int
    weight_type: str = "float"

    @property
    def activation_bytes(self) -> int:
        """Size of an activation in bytes."""
        return TYPE_BYTES[self.activation_type]

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.get_cumulative_costs`. The cost is the number of blocks, plus one per row of blocks."""
        return starts + np.arange(len(starts))

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = start_kernel()
        with function.loop("%begin", "%end") as block_row:
            address = function.gep("%starts", function.mul(block_row, 8))
            bounds = function.load("i64", address), function.load("i64", function.gep(address, 8))
            for first, lanes in self._split_outputs():
                self._emit_outputs(function, (first, lanes), bounds, function.mul(block_row, self.rows))
        return function

    def _split_outputs(self) -> Iterator[tuple[int, int]]:
        """Split the outputs of a block into vectors, and yield the first output and the lanes of each."""
        if self.rows == 1:
            yield 0, math.gcd(self.lanes, self.cols)
            return
        first, lanes = 0, self.lanes
        while first < self.rows:
            while lanes > self.rows - first:
                lanes //= 2
            yield first, lanes
            first += lanes

    def _emit_outputs(self, function: Emitter, part: tuple[int, int], bounds: tuple[str, str], output: str) -> None:
        """Compute one vector of outputs. `part` is its first output in the block, and its number of lanes."""
        kind = vector("float", part[1])
        unroll = 1 << (ACCUMULATORS // self.batch).bit_length() - 1
        sums = [[function.alloca(kind, "zeroinitializer") for _ in range(self.batch)] for _ in range(unroll)]
        start, stop = bounds
        count = function.int_op("sub", stop, start)
        unrolled = function.int_op("and", count, -unroll)
        middle = function.add(start, unrolled)
        with function.loop(start, middle, unroll) as block:
            self._emit_weight_prefetch(function, block, unroll)
            for number, totals in enumerate(sums):
                self._emit_block(function, totals, function.add(block, number), part)
        with function.loop(middle, stop) as block:
            self._emit_block(function, sums[0], block, part)
        self._emit_results(function, sums, part, output)

    def _emit_weight_prefetch(self, function: Emitter, block: str, count: int) -> None:
        size = self.rows * self.cols * TYPE_BYTES[self.weight_type]
        address = function.gep("%values", function.mul(block, size))
        for line in range(0, size * count, CACHE_LINE_BYTES):
            function.prefetch(function.gep(address, PREFETCH_BYTES + line), level=2)

    def _emit_block(self, function: Emitter, totals: list[str], block: str, part: tuple[int, int]) -> None:
        index_bytes = int(self.index_type[1:]) // 8
        index = function.load_index(self.index_type, function.gep("%columns", function.mul(block, index_bytes)))
        features = function.gep("%x", function.mul(index, self.cols * self.activation_bytes))
        block_bytes = self.rows * self.cols * TYPE_BYTES[self.weight_type]
        weights = function.gep("%values", function.mul(block, block_bytes))
        step = part[1] if self.rows == 1 else 1
        unroll = next(count for count in (4, 3, 2, 1) if self.cols // step % count == 0) * step
        if unroll == self.cols:
            for offset in range(0, self.cols, step):
                self._emit_column(function, totals, (features, weights, str(offset)), part)
            return
        with function.loop(0, self.cols, unroll) as column:
            for offset in range(0, unroll, step):
                self._emit_column(function, totals, (features, weights, function.add(column, offset)), part)

    def _emit_column(
        self, function: Emitter, totals: list[str], operands: tuple[str, str, str], part: tuple[int, int]
    ) -> None:
        """Multiply a column of a block. `operands` are the addresses of its features and weights, and the column."""
        (features, weights, column), (first, lanes) = operands, part
        offset = function.mul(function.add(function.mul(column, self.rows), first), TYPE_BYTES[self.weight_type])
        values = load_floats(function, self.weight_type, lanes, function.gep(weights, offset))
        feature = function.gep(features, function.mul(column, self.activation_bytes))
        for row, total in enumerate(totals):
            source = function.gep(feature, function.mul("%inputs", row * self.activation_bytes))
            if self.rows == 1:
                activations = load_floats(function, self.activation_type, lanes, source)
            else:
                scalar = load_floats(function, self.activation_type, 1, source)
                activations = function.shuffle("<1 x float>", scalar, "poison", [0] * lanes)
            function.accumulate(lanes, values, activations, total)

    def _emit_results(self, function: Emitter, sums: list[list[str]], part: tuple[int, int], output: str) -> None:
        first, lanes = part
        channel = function.add(output, first)
        for row in range(self.batch):
            parts = [function.load_variable(vector("float", lanes), totals[row]) for totals in sums]
            total, width = function.sum_vectors(parts, lanes), lanes
            if self.rows == 1:
                total, width = reduce_lanes(function, total, lanes), 1
            offset = function.mul(channel, FLOAT_BYTES)
            bias = load_floats(function, "float", width, function.gep("%bias", offset))
            if self.weight_type == "i8":
                scale = load_floats(function, "float", width, function.gep("%scales", offset))
                result = function.fma(width, total, scale, bias)
            else:
                result = function.assign(f"fadd {vector('float', width)} {total}, {bias}")
            index = function.add(function.mul("%outputs", row), channel)
            address = function.gep("%y", function.mul(index, self.activation_bytes))
            store_floats(function, self.activation_type, width, result, address)
