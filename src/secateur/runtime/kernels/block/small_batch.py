"""Blocks of N outputs × M inputs times a few rows of the batch: bound by the bytes of the weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import FewRowsKernel, begun
from secateur.runtime.kernels.codegen.vectors import AHEAD, FLOAT_BYTES, SIZES, folded, read_floats, write_floats
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES

__all__ = ["DirectKernel"]

CHAINS = 8
"""Sums that are added to in turns, so that none waits for the one before it."""


@dataclass(frozen=True, slots=True)
class DirectKernel(FewRowsKernel):
    """Which reads activations where they are, and whose units are rows of blocks.

    Lanes are the outputs of a block, or its inputs if it has one output.

    Attributes:
        rows: N, outputs of a block.
        cols: M, inputs of a block.
        index: LLVM's type of a block's number within its row.
        element: LLVM's type of activations.
        batch: Rows of the batch.
        lanes: Floats of the processor's widest vector.
        stored: LLVM's type of the weights.
    """

    rows: int
    cols: int
    index: str
    element: str
    batch: int
    lanes: int
    stored: str = "float"

    @property
    def size(self) -> int:
        """Bytes of an activation."""
        return SIZES[self.element]

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.costs`: blocks, and a little for each row of them."""
        return starts + np.arange(len(starts))

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        with function.loop("%begin", "%end") as block_row:
            place = function.at("%starts", function.multiply(block_row, 8))
            bounds = function.load("i64", place), function.load("i64", function.at(place, 8))
            for first, lanes in self._pieces():
                self._emit_piece(function, (first, lanes), bounds, function.multiply(block_row, self.rows))
        return function

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Where each vector of a column's outputs begins, and its lanes."""
        if self.rows == 1:
            yield 0, math.gcd(self.lanes, self.cols)
            return
        first, lanes = 0, self.lanes
        while first < self.rows:
            while lanes > self.rows - first:
                lanes //= 2
            yield first, lanes
            first += lanes

    def _emit_piece(self, function: Emitter, piece: tuple[int, int], bounds: tuple[str, str], output: str) -> None:
        kind = vector("float", piece[1])
        unroll = 1 << (CHAINS // self.batch).bit_length() - 1
        sums = [[function.variable(kind, "zeroinitializer") for _ in range(self.batch)] for _ in range(unroll)]
        start, stop = bounds
        count = function.integer("sub", stop, start)
        rounds = function.integer("and", count, -unroll)
        middle = function.add(start, rounds)
        with function.loop(start, middle, unroll) as block:
            self._emit_prefetch(function, block, unroll)
            for number, chain in enumerate(sums):
                self._emit_block(function, chain, function.add(block, number), piece)
        with function.loop(middle, stop) as block:
            self._emit_block(function, sums[0], block, piece)
        self._emit_writing(function, sums, piece, output)

    def _emit_prefetch(self, function: Emitter, block: str, count: int) -> None:
        """Ask for the weights that come soon: the processor itself stops to do so at every page."""
        size = self.rows * self.cols * SIZES[self.stored]
        place = function.at("%values", function.multiply(block, size))
        for line in range(0, size * count, CACHE_LINE_BYTES):
            function.prefetch(function.at(place, AHEAD + line), level=2)

    def _emit_block(self, function: Emitter, chain: list[str], block: str, piece: tuple[int, int]) -> None:
        bytes_of_index = int(self.index[1:]) // 8
        number = function.index(self.index, function.at("%columns", function.multiply(block, bytes_of_index)))
        features = function.at("%x", function.multiply(number, self.cols * self.size))
        weights = function.at("%values", function.multiply(block, self.rows * self.cols * SIZES[self.stored]))
        step = piece[1] if self.rows == 1 else 1
        unroll = next(count for count in (4, 3, 2, 1) if self.cols // step % count == 0) * step
        if unroll == self.cols:
            for offset in range(0, self.cols, step):
                self._emit_column(function, chain, (features, weights, str(offset)), piece)
            return
        with function.loop(0, self.cols, unroll) as column:
            for offset in range(0, unroll, step):
                self._emit_column(function, chain, (features, weights, function.add(column, offset)), piece)

    def _emit_column(
        self, function: Emitter, chain: list[str], where: tuple[str, str, str], piece: tuple[int, int]
    ) -> None:
        (features, weights, column), (first, lanes) = where, piece
        offset = function.add(function.multiply(column, self.rows), first)
        values = read_floats(
            function, self.stored, lanes, function.at(weights, function.multiply(offset, SIZES[self.stored]))
        )
        place = function.at(features, function.multiply(column, self.size))
        kind = vector("float", lanes)
        for row, total in enumerate(chain):
            source = function.at(place, function.multiply("%inputs", row * self.size))
            if self.rows == 1:
                some = read_floats(function, self.element, lanes, source)
            else:
                number = read_floats(function, self.element, 1, source)
                some = function.shuffle("<1 x float>", number, "poison", [0] * lanes)
            function.put(kind, function.fused(lanes, values, some, function.get(kind, total)), total)

    def _emit_writing(self, function: Emitter, sums: list[list[str]], piece: tuple[int, int], output: str) -> None:
        first, lanes = piece
        channel = function.add(output, first)
        for row in range(self.batch):
            parts = [function.get(vector("float", lanes), chain[row]) for chain in sums]
            total, kept = function.sum(parts, lanes), lanes
            if self.rows == 1:
                total, kept = folded(function, total, lanes), 1
            offset = function.multiply(channel, FLOAT_BYTES)
            bias = read_floats(function, "float", kept, function.at("%bias", offset))
            if self.stored == "i8":
                scale = read_floats(function, "float", kept, function.at("%scales", offset))
                result = function.fused(kept, total, scale, bias)
            else:
                result = function.let(f"fadd {vector('float', kept)} {total}, {bias}")
            place = function.add(function.multiply("%outputs", row), channel)
            write_floats(function, self.element, kept, result, function.at("%y", function.multiply(place, self.size)))
