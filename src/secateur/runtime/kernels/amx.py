"""The instructions of processors that multiply tiles of bfloat16 (Intel's AMX)."""

from __future__ import annotations

from secateur.runtime.kernels.chunks import STRIP
from secateur.runtime.kernels.emitter import Emitter, vector
from secateur.runtime.kernels.turning import LINE_BYTES

__all__ = ["TILES", "TILE_BYTES", "TILE_INPUTS", "emit_configuration", "emit_product", "emit_tile"]

TILE_INPUTS = 32
"""Of a tile: a line of the cache of bfloat16."""

TILE_BYTES = STRIP * LINE_BYTES
"""Sixteen lines."""

TILES = 8
"""That the processor has."""

PALETTE = 1
"""The only one that there is: eight tiles of up to sixteen lines."""


def emit_configuration(function: Emitter) -> None:
    """Tell the processor that all tiles have sixteen lines of 64 bytes."""
    config = function.variable(vector("i8", LINE_BYTES), "zeroinitializer")
    function.store("i8", str(PALETTE), config)
    for tile in range(TILES):
        function.store("i16", str(LINE_BYTES), function.at(config, 16 + 2 * tile))
        function.store("i8", str(STRIP), function.at(config, 48 + tile))
    function.do("llvm.x86.ldtilecfg", [("ptr", config)])


def emit_tile(function: Emitter, what: str, tile: int, place: str, stride: int) -> None:
    """Move a tile from lines at a place (``tileloadd64``) or to them (``tilestored64``)."""
    function.do(f"llvm.x86.{what}", [("i8", str(tile)), ("ptr", place), ("i64", str(stride))])


def emit_product(function: Emitter, total: int, left: int, right: int) -> None:
    """Add the product of two tiles to a third."""
    function.do("llvm.x86.tdpbf16ps", [("i8", str(tile)) for tile in (total, left, right)])
