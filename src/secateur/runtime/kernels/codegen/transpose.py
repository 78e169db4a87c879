"""Turning rows into columns on the way in and out of a kernel, in squares as wide as a vector."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.runtime.kernels.codegen.emitter import Emitter, vector

__all__ = ["QUAD", "transposed"]

QUAD = 4
"""Floats that are turned together."""


def turned(function: Emitter, vectors: Sequence[str], lanes: int) -> list[str]:
    """Four vectors, turned within each run of four lanes: element j of the k-th becomes element k of the j-th."""
    kind = vector("float", lanes)

    def mixed(left: str, right: str, places: tuple[int, int, int, int]) -> str:
        shifted = [place % QUAD + (lanes if place >= QUAD else 0) for place in places]
        mask = [base + place for base in range(0, lanes, QUAD) for place in shifted]
        return function.shuffle(kind, left, right, mask)

    low, high, pairs_low, pairs_high = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
    first, second, third, fourth = vectors
    left, right = mixed(first, second, low), mixed(third, fourth, low)
    left_high, right_high = mixed(first, second, high), mixed(third, fourth, high)
    return [
        mixed(left, right, pairs_low),
        mixed(left, right, pairs_high),
        mixed(left_high, right_high, pairs_low),
        mixed(left_high, right_high, pairs_high),
    ]


def transposed(function: Emitter, rows: Sequence[str], lanes: int) -> list[str]:
    """As many vectors as each has lanes (4, 8 or 16): element j of the k-th becomes element k of the j-th."""
    parts = [turned(function, rows[first : first + QUAD], lanes) for first in range(0, lanes, QUAD)]
    columns = [""] * lanes
    for number in range(QUAD):
        columns[number::QUAD] = _quads_turned(function, [part[number] for part in parts], lanes)
    return columns


def _quads_turned(function: Emitter, vectors: list[str], lanes: int) -> list[str]:
    """One, two or four vectors of as many runs of four lanes: run j of the k-th becomes run k of the j-th."""
    kind = vector("float", lanes)

    def picked(left: str, right: str, runs: list[int]) -> str:
        return function.shuffle(kind, left, right, [run * QUAD + lane for run in runs for lane in range(QUAD)])

    if len(vectors) == 1:
        return vectors
    if len(vectors) == 2:
        return [picked(vectors[0], vectors[1], [run, run + 2]) for run in range(2)]
    first, second, third, fourth = vectors
    columns = []
    for run in (0, 2):
        pair = [run, run + 1, run + 4, run + 5]
        left, right = picked(first, second, pair), picked(third, fourth, pair)
        columns += [picked(left, right, [0, 2, 4, 6]), picked(left, right, [1, 3, 5, 7])]
    return columns
