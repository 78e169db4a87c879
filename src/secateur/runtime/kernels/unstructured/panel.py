"""Single weights times panels of activations, sixteen outputs beside one another in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.chunk_kernel import STRIP_BYTES, ChunkKernel, Part, emit_ahead, emit_products
from secateur.runtime.kernels.codegen.panel import Access, Panel
from secateur.runtime.kernels.codegen.vectors import AHEAD, expanded
from secateur.runtime.kernels.formats.base import STRIP

__all__ = ["ScatteredKernel"]


@dataclass(frozen=True, slots=True)
class ScatteredKernel(ChunkKernel):
    """Any weights; see `Scattered` for how they lie.

    Attributes:
        chunk: Outputs of a chunk.
        piece: Features of a piece.
        panel: How activations are packed.
        stored: LLVM's type of the weights.
        beside: Outputs that are computed beside one another.
    """

    chunk: int
    piece: int
    panel: Panel
    stored: str = "float"
    beside: int = 2

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """See `Kernel.costs`: weights in sixteens, and a little for each chunk."""
        return starts[:: self.pieces(inputs) * (self.chunk // STRIP)]

    def emit_part(self, access: Access, part: Part) -> None:
        """See `ChunkKernel.emit_part`."""
        function, strips = access.function, self.chunk // STRIP
        features = self.features(access, part)
        number = function.add(function.multiply(part.chunk, part.pieces), part.piece)
        first = function.multiply(number, strips)
        with function.loop(first, function.add(first, strips)) as strip:
            self._emit_strip(access, strip, features, part)

    def _emit_strip(self, access: Access, strip: str, features: str, part: Part) -> None:
        function = access.function
        place = function.at("%starts", function.multiply(strip, 8))
        start, stop = function.load("i64", place), function.load("i64", function.at(place, 8))
        emit_ahead(function, self.stored, (start, stop), AHEAD // STRIP_BYTES)
        bounds = function.multiply(start, STRIP), function.multiply(stop, STRIP)
        floats = expanded(function, self.stored, bounds, self.room(function, part))
        with function.loop(0, STRIP, self.beside) as lane:
            order = function.at("%order", function.add(function.multiply(strip, STRIP), lane))
            outputs = [function.index("i8", function.at(order, number)) for number in range(self.beside)]
            waiting = [self.waiting(access, part.sums, output) for output in outputs]
            with function.loop(function.add(bounds[0], lane), bounds[1], STRIP) as slot:
                word = f"i{8 * self.beside}"
                some = function.index(word, function.at("%columns", slot))
                for number, (_, totals) in enumerate(waiting):
                    own = function.add(slot, number)
                    column = function.integer("and", function.integer("lshr", some, 8 * number), 255)
                    emit_products(access, (floats, own, access.place(features, column)), [totals])
            for places, totals in waiting:
                self.emit_waiting(access, places, totals)
