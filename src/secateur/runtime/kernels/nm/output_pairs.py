"""Pairs of outputs times activations, of which the weights that share an input share its load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.chunk_kernel import STRIP_BYTES, ChunkKernel, Part, emit_ahead, emit_products
from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.panel import Access, Panel
from secateur.runtime.kernels.codegen.small_batch import GatheringKernel
from secateur.runtime.kernels.codegen.vectors import AHEAD, FLOAT_BYTES, FLOATS, expanded, folded
from secateur.runtime.kernels.formats.base import STRIP
from secateur.runtime.kernels.formats.output_pairs import PAIR, SLOTS

__all__ = ["PairGatherKernel", "PairKernel"]

PAIR_BYTES = 3
"""Of what is known of a pair: its two outputs, and how many slots share their input."""


@dataclass(frozen=True, slots=True)
class PairKernel(ChunkKernel):
    """For panels of activations; see `Paired` for how weights lie.

    Attributes:
        chunk: Outputs of a chunk.
        piece: Features of a piece.
        panel: How activations are packed.
        stored: LLVM's type of the weights.
    """

    chunk: int
    piece: int
    panel: Panel
    stored: str = "float"

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """See `Kernel.costs`: weights in sixteens."""
        return starts[:: self.pieces(inputs) * (self.chunk // PAIR)]

    def emit_part(self, access: Access, part: Part) -> None:
        """See `ChunkKernel.emit_part`."""
        function, pairs = access.function, self.chunk // PAIR
        features = self.features(access, part)
        number = function.add(function.multiply(part.chunk, part.pieces), part.piece)
        first = function.multiply(number, pairs)
        with function.loop(first, function.add(first, pairs)) as pair:
            self._emit_pair(access, pair, features, part)

    def _emit_pair(self, access: Access, pair: str, features: str, part: Part) -> None:
        function = access.function
        bounds = pair_bounds(function, pair)
        *outputs, shared = pair_numbers(function, pair)
        emit_ahead(function, self.stored, bounds, AHEAD // STRIP_BYTES)
        weights = function.multiply(bounds[0], STRIP), function.multiply(bounds[1], STRIP)
        floats = expanded(function, self.stored, weights, self.room(function, part))
        waiting = [self.waiting(access, part.sums, output) for output in outputs]
        totals = [variables for _, variables in waiting]
        start, stop = function.multiply(bounds[0], SLOTS), function.multiply(bounds[1], SLOTS)
        middle = function.add(start, shared)
        with function.loop(start, middle) as slot:
            first = function.multiply(slot, PAIR)
            emit_products(access, (floats, first, self._activations(access, features, first)), totals)
        with function.loop(middle, stop) as slot:
            for number, variables in enumerate(totals):
                own = function.add(function.multiply(slot, PAIR), number)
                emit_products(access, (floats, own, self._activations(access, features, own)), [variables])
        for places, variables in waiting:
            self.emit_waiting(access, places, variables)

    def _activations(self, access: Access, features: str, weight: str) -> str:
        """Where those of a weight are."""
        return access.place(features, access.function.index("i8", access.function.at("%columns", weight)))


@dataclass(frozen=True, slots=True)
class PairGatherKernel(GatheringKernel):
    """For a few rows of the batch; see `Paired` for how weights lie."""

    chunk: int
    piece: int
    element: str
    batch: int
    stored: str = "float"

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """See `Kernel.costs`: weights in sixteens."""
        return starts[:: -(-inputs // self.piece) * (self.chunk // PAIR)]

    def emit_part(self, function: Emitter, part: str, features: str, sums: str) -> None:
        """See `GatheringKernel.emit_part`."""
        pairs = self.chunk // PAIR
        first = function.multiply(part, pairs)
        with function.loop(first, function.add(first, pairs)) as pair:
            self._emit_pair(function, pair, features, sums)

    def _emit_pair(self, function: Emitter, pair: str, features: str, sums: str) -> None:
        totals = [function.variable(FLOATS, "zeroinitializer") for _ in range(self.batch)]
        with function.loop(*pair_bounds(function, pair)) as number:
            self.emit_sixteen(function, number, features, totals)
        *outputs, _ = pair_numbers(function, pair)
        for row, total in enumerate(totals):
            both = folded(function, function.get(FLOATS, total), STRIP, PAIR)
            for side, output in enumerate(outputs):
                place = function.multiply(function.add(output, row * self.chunk), FLOAT_BYTES)
                goal = function.at(sums, place)
                own = function.shuffle(vector("float", PAIR), both, "poison", [side])
                before = function.load("<1 x float>", goal, FLOAT_BYTES)
                function.store("<1 x float>", function.let(f"fadd <1 x float> {before}, {own}"), goal, FLOAT_BYTES)


def pair_bounds(function: Emitter, pair: str) -> tuple[str, str]:
    """A pair's first sixteen weights, and behind its last."""
    place = function.at("%starts", function.multiply(pair, 8))
    return function.load("i64", place), function.load("i64", function.at(place, 8))


def pair_numbers(function: Emitter, pair: str) -> list[str]:
    """A pair's two outputs in the chunk, and how many slots share their input."""
    place = function.at("%order", function.multiply(pair, PAIR_BYTES))
    return [function.index("i8", function.at(place, number)) for number in range(PAIR_BYTES)]
