"""The instructions of processors that multiply tiles of bfloat16 (Intel's AMX)."""

from __future__ import annotations

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES, STRIP

__all__ = ["HALVES", "TILES", "TILE_BYTES", "emit_configuration", "emit_line", "emit_product", "emit_tile"]

TILE_BYTES = STRIP * CACHE_LINE_BYTES
"""Sixteen lines."""

TILES = 8
"""That the processor has."""

HALVES = vector("i16", 2 * STRIP)
FLAGS = vector("i1", 2 * STRIP)

PALETTE = 1
"""The only one that there is: eight tiles of up to sixteen lines."""


def emit_configuration(function: Emitter) -> None:
    """Tell the processor that all tiles have sixteen lines of 64 bytes."""
    config = function.variable(vector("i8", CACHE_LINE_BYTES), "zeroinitializer")
    function.store("i8", str(PALETTE), config)
    for tile in range(TILES):
        function.store("i16", str(CACHE_LINE_BYTES), function.at(config, 16 + 2 * tile))
        function.store("i8", str(STRIP), function.at(config, 48 + tile))
    function.do("llvm.x86.ldtilecfg", [("ptr", config)])


def emit_tile(function: Emitter, what: str, tile: int, place: str, stride: int) -> None:
    """Move a tile from lines at a place (``tileloadd64``) or to them (``tilestored64``)."""
    function.do(f"llvm.x86.{what}", [("i8", str(tile)), ("ptr", place), ("i64", str(stride))])


def emit_product(function: Emitter, total: int, left: int, right: int) -> None:
    """Add the product of two tiles to a third."""
    function.do("llvm.x86.tdpbf16ps", [("i8", str(tile)) for tile in (total, left, right)])


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
