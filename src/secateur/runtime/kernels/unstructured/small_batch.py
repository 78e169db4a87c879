"""Single weights times a few rows of the batch, whose activations are gathered for sixteen weights at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.small_batch import GatheringKernel, numbered
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, FLOATS
from secateur.runtime.kernels.formats.base import STRIP

__all__ = ["GatherKernel"]

UNROLL = 4
"""Sums of a strip that are added to in turns: 1.5 times as fast as one or two where weights come from far."""


@dataclass(frozen=True, slots=True)
class GatherKernel(GatheringKernel):
    """Any weights; see `Scattered` for how they lie."""

    chunk: int
    piece: int
    element: str
    batch: int
    stored: str = "float"

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:
        """See `Kernel.costs`: weights in sixteens."""
        return starts[:: -(-inputs // self.piece) * (self.chunk // STRIP)]

    def emit_part(self, function: Emitter, part: str, features: str, sums: str) -> None:
        """See `GatheringKernel.emit_part`."""
        strips = self.chunk // STRIP
        first = function.multiply(part, strips)
        with function.loop(first, function.add(first, strips)) as strip:
            self._emit_strip(function, strip, features, sums)

    def _emit_strip(self, function: Emitter, strip: str, features: str, sums: str) -> None:
        place = function.at("%starts", function.multiply(strip, 8))
        start, stop = function.load("i64", place), function.load("i64", function.at(place, 8))
        chains = [[function.variable(FLOATS, "zeroinitializer") for _ in range(self.batch)] for _ in range(UNROLL)]
        rounds = function.integer("and", function.integer("sub", stop, start), -UNROLL)
        middle = function.add(start, rounds)
        with function.loop(start, middle, UNROLL) as slot:
            for number, totals in enumerate(chains):
                self.emit_sixteen(function, function.add(slot, number), features, totals)
        with function.loop(middle, stop) as slot:
            self.emit_sixteen(function, slot, features, chains[0])
        order = function.load(vector("i8", STRIP), function.at("%order", function.multiply(strip, STRIP)))
        for row in range(self.batch):
            total = function.sum([function.get(FLOATS, totals[row]) for totals in chains], STRIP)
            places = numbered(function, function.at(sums, row * self.chunk * FLOAT_BYTES), order)
            function.scatter(function.let(f"fadd {FLOATS} {total}, {function.gather(places)}"), places)
