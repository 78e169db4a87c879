"""Emit AMX instructions, and the AVX-512 instruction that expands a line of masked weights."""

from __future__ import annotations

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES, STRIP

__all__ = [
    "BFLOAT16_LINE",
    "TILES",
    "TILE_BYTES",
    "emit_expanded_line",
    "emit_tile_config",
    "emit_tile_load",
    "emit_tile_product",
    "emit_tile_store",
]

TILE_BYTES = STRIP * CACHE_LINE_BYTES
"""Size of a tile: sixteen rows of one cache line each."""

TILES = 8
"""Number of tile registers."""

PALETTE = 1
"""The only palette, with eight tiles of up to sixteen rows."""

BFLOAT16_LINE = vector("i16", 2 * STRIP)
"""A tile row: the bits of 32 bfloat16."""

LINE_MASK = vector("i1", 2 * STRIP)


def emit_tile_config(function: Emitter) -> None:
    """Configure all tiles as sixteen rows of 64 bytes."""
    config = function.alloca(vector("i8", CACHE_LINE_BYTES), "zeroinitializer")
    function.store("i8", str(PALETTE), config)
    for tile in range(TILES):
        function.store("i16", str(CACHE_LINE_BYTES), function.gep(config, 16 + 2 * tile))
        function.store("i8", str(STRIP), function.gep(config, 48 + tile))
    function.call_void("llvm.x86.ldtilecfg", [("ptr", config)])


def emit_tile_load(function: Emitter, tile: int, address: str, stride: int) -> None:
    """Load a tile from rows that are `stride` bytes apart."""
    function.call_void("llvm.x86.tileloadd64", [("i8", str(tile)), ("ptr", address), ("i64", str(stride))])


def emit_tile_store(function: Emitter, tile: int, address: str, stride: int) -> None:
    """Store a tile to rows that are `stride` bytes apart."""
    function.call_void("llvm.x86.tilestored64", [("i8", str(tile)), ("ptr", address), ("i64", str(stride))])


def emit_tile_product(function: Emitter, total: int, left: int, right: int) -> None:
    """Add the product of two bfloat16 tiles to a float32 tile."""
    function.call_void("llvm.x86.tdpbf16ps", [("i8", str(tile)) for tile in (total, left, right)])


def emit_expanded_line(function: Emitter, pointer: str, mask: str, activation_type: str) -> list[str]:
    """Expand a line of `BitmaskFormat` into its weights and the zeros between them.

    Args:
        function: The function under construction.
        pointer: A variable with the address of the line's weights. It is advanced to the next line.
        mask: Address of the line's mask.
        activation_type: ``float`` if weights are stored as two bfloat16, otherwise ``bfloat``.

    Returns:
        The line as bfloat16, or its high parts and its low parts.
    """
    bits = function.load("i32", mask, 4)
    flags = function.assign(f"bitcast i32 {bits} to {LINE_MASK}")
    count = function.assign(f"zext i32 {function.call('i32', 'llvm.ctpop.i32', [('i32', bits)])} to i64")
    address, lines = function.load_variable("ptr", pointer), []
    for _ in range(2 if activation_type == "float" else 1):
        arguments = [("ptr", address), (LINE_MASK, flags), (BFLOAT16_LINE, "zeroinitializer")]
        lines.append(function.call(BFLOAT16_LINE, "llvm.masked.expandload.v32i16", arguments))
        address = function.gep(address, function.mul(count, 2))
    function.store_variable("ptr", address, pointer)
    return lines
