"""Transpose squares of floats in registers."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.runtime.kernels.codegen.emitter import Emitter, vector

__all__ = ["QUAD", "transpose_square"]

QUAD = 4
"""Number of lanes in the smallest transposed square."""


def transpose_square(function: Emitter, rows: Sequence[str], lanes: int) -> list[str]:
    """Transpose a square of 4, 8 or 16 vectors with the same number of lanes."""
    parts = [_transpose_quads(function, rows[first : first + QUAD], lanes) for first in range(0, lanes, QUAD)]
    columns = [""] * lanes
    for number in range(QUAD):
        columns[number::QUAD] = _transpose_quad_blocks(function, [part[number] for part in parts], lanes)
    return columns


def _transpose_quads(function: Emitter, vectors: Sequence[str], lanes: int) -> list[str]:
    """Transpose each 4×4 square of four vectors, so that element j of vector k becomes element k of vector j."""
    kind = vector("float", lanes)

    def mix(left: str, right: str, indices: tuple[int, int, int, int]) -> str:
        shifted = [index % QUAD + (lanes if index >= QUAD else 0) for index in indices]
        mask = [base + index for base in range(0, lanes, QUAD) for index in shifted]
        return function.shuffle(kind, left, right, mask)

    low, high, pairs_low, pairs_high = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
    first, second, third, fourth = vectors
    left, right = mix(first, second, low), mix(third, fourth, low)
    left_high, right_high = mix(first, second, high), mix(third, fourth, high)
    return [
        mix(left, right, pairs_low),
        mix(left, right, pairs_high),
        mix(left_high, right_high, pairs_low),
        mix(left_high, right_high, pairs_high),
    ]


def _transpose_quad_blocks(function: Emitter, vectors: list[str], lanes: int) -> list[str]:
    """Transpose blocks of four lanes in up to four vectors, so that block j of vector k becomes block k of vector j."""
    kind = vector("float", lanes)

    def pick(left: str, right: str, blocks: list[int]) -> str:
        return function.shuffle(kind, left, right, [block * QUAD + lane for block in blocks for lane in range(QUAD)])

    if len(vectors) == 1:
        return vectors
    if len(vectors) == 2:
        return [pick(vectors[0], vectors[1], [block, block + 2]) for block in range(2)]
    first, second, third, fourth = vectors
    columns = []
    for block in (0, 2):
        pair = [block, block + 1, block + 4, block + 5]
        left, right = pick(first, second, pair), pick(third, fourth, pair)
        columns += [pick(left, right, [0, 2, 4, 6]), pick(left, right, [1, 3, 5, 7])]
    return columns
