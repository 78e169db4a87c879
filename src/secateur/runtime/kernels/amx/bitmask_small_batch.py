"""Multiply weights in the bitmask format by a small batch with vector instructions, limited by memory bandwidth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.amx.instructions import BFLOAT16_LINE, emit_expanded_line
from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.kernel import SmallBatchKernel, start_kernel
from secateur.runtime.kernels.codegen.vectors import (
    FLOAT_BYTES,
    FLOATS,
    PREFETCH_BYTES,
    TYPE_BYTES,
    WORDS,
    load_floats,
    store_first_floats,
)
from secateur.runtime.kernels.formats.base import STRIP

__all__ = ["BitmaskSmallBatchKernel"]


@dataclass(frozen=True, slots=True)
class BitmaskSmallBatchKernel(SmallBatchKernel):
    """Multiplies weights in `BitmaskFormat` by a small batch, on any processor. Its unit is a strip.

    Attributes:
        activation_type: LLVM type of activations and weights. ``float`` weights are stored as two bfloat16.
        batch: Number of batch rows.
        chunk: Number of outputs in a chunk.
        piece: Number of features in a piece.
    """

    activation_type: str
    batch: int
    chunk: int
    piece: int

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """See `Kernel.get_cumulative_costs`. The cost is the number of weights, plus one per input."""
        counts = np.diff(starts).reshape(-1, -(-inputs // self.piece), self.chunk // STRIP)
        return np.append(0, np.cumsum(counts.sum(axis=1).reshape(-1) + inputs))

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = start_kernel()
        strips = self.chunk // STRIP
        pieces = function.int_op("sdiv", function.add("%inputs", self.piece - 1), self.piece)
        end = function.smin("%end", function.int_op("sdiv", function.add("%outputs", STRIP - 1), STRIP))
        with function.loop("%begin", end) as strip:
            sums = [[function.alloca(FLOATS, "zeroinitializer") for _ in range(2)] for _ in range(self.batch)]
            chunk, inner = function.int_op("sdiv", strip, strips), function.int_op("srem", strip, strips)
            with function.loop(0, pieces) as piece:
                first = function.mul(function.add(function.mul(chunk, pieces), piece), strips)
                self._emit_piece(function, (function.add(first, inner), piece), sums)
            self._emit_results(function, function.mul(strip, STRIP), sums)
        return function

    def _emit_piece(self, function: Emitter, numbers: tuple[str, str], sums: list[list[str]]) -> None:
        """Add the products of a piece of a strip to the sums.

        Args:
            function: The function under construction.
            numbers: Index of the strip over all pieces and chunks, and index of the piece.
            sums: Variables by row, then for even and odd features.
        """
        (run, piece), size = numbers, TYPE_BYTES[self.activation_type]
        start = function.load("i64", function.gep("%starts", function.mul(run, 8)))
        pointer = function.alloca("ptr", function.gep("%values", function.mul(start, size)))
        masks = function.gep("%columns", function.mul(run, self.piece * 2))
        first = function.mul(piece, self.piece)
        features = function.smin(function.int_op("sub", "%inputs", first), self.piece)
        last = function.int_op("sub", "%inputs", 1)
        with function.loop(0, features, 2) as feature:
            function.prefetch(function.gep(function.load_variable("ptr", pointer), PREFETCH_BYTES), level=2)
            mask = function.gep(masks, function.mul(feature, 2))
            lines = emit_expanded_line(function, pointer, mask, self.activation_type)
            halves = [widen_line(function, line) for line in lines]
            for side, parts in enumerate(zip(*halves, strict=True)):
                weight = parts[0] if len(parts) == 1 else function.assign(f"fadd {FLOATS} {parts[0]}, {parts[1]}")
                column = function.smin(function.add(function.add(first, feature), side), last)
                for row, totals in enumerate(sums):
                    offset = function.mul(function.add(function.mul("%inputs", row), column), size)
                    value = load_floats(function, self.activation_type, 1, function.gep("%x", offset))
                    activation = function.shuffle("<1 x float>", value, "poison", [0] * STRIP)
                    function.accumulate(STRIP, weight, activation, totals[side])

    def _emit_results(self, function: Emitter, output: str, sums: list[list[str]]) -> None:
        left = function.int_op("sub", "%outputs", output)
        bias = function.load_first(STRIP, function.gep("%bias", function.mul(output, FLOAT_BYTES)), left)
        for row, totals in enumerate(sums):
            total = function.sum_vectors([function.load_variable(FLOATS, variable) for variable in totals], STRIP)
            result = function.assign(f"fadd {FLOATS} {total}, {bias}")
            index = function.add(function.mul("%outputs", row), output)
            offset = function.mul(index, TYPE_BYTES[self.activation_type])
            store_first_floats(function, self.activation_type, STRIP, result, function.gep("%y", offset), left)


def widen_line(function: Emitter, line: str) -> tuple[str, str]:
    """Convert the even and the odd elements of 32 bfloat16 to floats."""
    bits = function.assign(f"bitcast {BFLOAT16_LINE} {line} to {WORDS}")
    high_mask, sixteen = (f"<{', '.join([f'i32 {number}'] * STRIP)}>" for number in (-(1 << 16), 16))
    even, odd = function.assign(f"shl {WORDS} {bits}, {sixteen}"), function.assign(f"and {WORDS} {bits}, {high_mask}")
    first, second = (function.assign(f"bitcast {WORDS} {words} to {FLOATS}") for words in (even, odd))
    return first, second
