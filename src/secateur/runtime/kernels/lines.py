"""A line of masked weights: two inputs of sixteen outputs, side by side."""

from __future__ import annotations

from secateur.runtime.kernels.chunks import STRIP
from secateur.runtime.kernels.emitter import Emitter, vector

__all__ = ["HALVES", "emit_line"]

HALVES = vector("i16", 2 * STRIP)
FLAGS = vector("i1", 2 * STRIP)


def emit_line(function: Emitter, slot: str, mask: str, element: str) -> list[str]:
    """A line of weights, each where it belongs, and zeros between them; of floats, the large halves and the small ones.

    Args:
        function: Where to.
        slot: A variable: where the line's weights are; it moves to those of the next line.
        mask: Where the line's mask is.
        element: LLVM's type of the weights.
    """
    bits = function.load("i32", mask, 4)
    flags = function.let(f"bitcast i32 {bits} to {FLAGS}")
    count = function.let(f"zext i32 {function.call('i32', 'llvm.ctpop.i32', [('i32', bits)])} to i64")
    place, found = function.get("ptr", slot), []
    for _ in range(2 if element == "float" else 1):
        arguments = [("ptr", place), (FLAGS, flags), (HALVES, "zeroinitializer")]
        found.append(function.call(HALVES, "llvm.masked.expandload.v32i16", arguments))
        place = function.at(place, function.multiply(count, 2))
    function.put("ptr", place, slot)
    return found
