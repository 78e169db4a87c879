"""Masked weights times a few rows of the batch: bound by the bytes of the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.amx.instructions import HALVES, emit_line
from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.kernel import FewRowsKernel, begun
from secateur.runtime.kernels.codegen.vectors import AHEAD, FLOAT_BYTES, FLOATS, SIZES, WORDS, read_floats, write_first
from secateur.runtime.kernels.formats.base import STRIP

__all__ = ["ExpandingKernel"]


@dataclass(frozen=True, slots=True)
class ExpandingKernel(FewRowsKernel):
    """Which reads activations where they are; see `Masked` for how weights lie. A unit is sixteen outputs.

    Attributes:
        element: LLVM's type of activations and weights; ``float`` lies in halves.
        batch: Rows of the batch.
        chunk: Outputs, and
        part: features of which weights lie together.
    """

    element: str
    batch: int
    chunk: int
    part: int

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """See `Kernel.costs`: weights, and a little for each line."""
        counts = np.diff(starts).reshape(-1, -(-inputs // self.part), self.chunk // STRIP)
        return np.append(0, np.cumsum(counts.sum(axis=1).reshape(-1) + inputs))

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        strips = self.chunk // STRIP
        parts = function.integer("sdiv", function.add("%inputs", self.part - 1), self.part)
        end = function.smaller("%end", function.integer("sdiv", function.add("%outputs", STRIP - 1), STRIP))
        with function.loop("%begin", end) as strip:
            sums = [[function.variable(FLOATS, "zeroinitializer") for _ in range(2)] for _ in range(self.batch)]
            chunk, inner = function.integer("sdiv", strip, strips), function.integer("srem", strip, strips)
            with function.loop(0, parts) as part:
                run = function.multiply(function.add(function.multiply(chunk, parts), part), strips)
                self._emit_part(function, (function.add(run, inner), part), sums)
            self._emit_results(function, function.multiply(strip, STRIP), sums)
        return function

    def _emit_part(self, function: Emitter, numbers: tuple[str, str], sums: list[list[str]]) -> None:
        """Add the products of a part; `numbers`: among all of the weight, and among those of its outputs."""
        (run, part), size = numbers, SIZES[self.element]
        start = function.load("i64", function.at("%starts", function.multiply(run, 8)))
        slot = function.variable("ptr", function.at("%values", function.multiply(start, size)))
        masks = function.at("%columns", function.multiply(run, self.part * 2))
        first = function.multiply(part, self.part)
        features = function.smaller(function.integer("sub", "%inputs", first), self.part)
        last = function.integer("sub", "%inputs", 1)
        with function.loop(0, features, 2) as feature:
            function.prefetch(function.at(function.get("ptr", slot), AHEAD), level=2)
            mask = function.at(masks, function.multiply(feature, 2))
            halves = [floats(function, half) for half in emit_line(function, slot, mask, self.element)]
            for side, parts in enumerate(zip(*halves, strict=True)):
                weight = parts[0] if len(parts) == 1 else function.let(f"fadd {FLOATS} {parts[0]}, {parts[1]}")
                number = function.smaller(function.add(function.add(first, feature), side), last)
                for row, totals in enumerate(sums):
                    own = function.multiply(function.add(function.multiply("%inputs", row), number), size)
                    found = read_floats(function, self.element, 1, function.at("%x", own))
                    some = function.shuffle("<1 x float>", found, "poison", [0] * STRIP)
                    total = function.fused(STRIP, weight, some, function.get(FLOATS, totals[side]))
                    function.put(FLOATS, total, totals[side])

    def _emit_results(self, function: Emitter, output: str, sums: list[list[str]]) -> None:
        left = function.integer("sub", "%outputs", output)
        bias = function.load_first(STRIP, function.at("%bias", function.multiply(output, FLOAT_BYTES)), left)
        for row, totals in enumerate(sums):
            total = function.sum([function.get(FLOATS, some) for some in totals], STRIP)
            result = function.let(f"fadd {FLOATS} {total}, {bias}")
            place = function.multiply(function.add(function.multiply("%outputs", row), output), SIZES[self.element])
            write_first(function, self.element, STRIP, result, function.at("%y", place), left)


def floats(function: Emitter, halves: str) -> tuple[str, str]:
    """The even and the odd ones of 32 bfloat16, as floats."""
    bits = function.let(f"bitcast {HALVES} {halves} to {WORDS}")
    high, sixteen = (f"<{', '.join([f'i32 {number}'] * STRIP)}>" for number in (-(1 << 16), 16))
    even, odd = function.let(f"shl {WORDS} {bits}, {sixteen}"), function.let(f"and {WORDS} {bits}, {high}")
    first, second = (function.let(f"bitcast {WORDS} {some} to {FLOATS}") for some in (even, odd))
    return first, second
