"""N of every M weights times activations, of which the index of each weight selects one within its group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.chunk_kernel import ChunkKernel, Part, emit_ahead, emit_products
from secateur.runtime.kernels.codegen.panel import Access, Panel
from secateur.runtime.kernels.codegen.vectors import expanded
from secateur.runtime.kernels.formats.base import STRIP
from secateur.runtime.kernels.formats.nm import place_bits

__all__ = ["SelectPanelKernel"]


@dataclass(frozen=True, slots=True)
class SelectPanelKernel(ChunkKernel):
    """For panels of activations; see `Grouped` for how weights lie.

    Attributes:
        keep: N.
        group: M.
        chunk: Outputs of a chunk.
        piece: Features of a piece, a multiple of M.
        panel: How activations are packed.
        stored: LLVM's type of the weights.
        beside: Outputs that are computed beside one another.
    """

    keep: int
    group: int
    chunk: int
    piece: int
    panel: Panel
    stored: str = "float"
    beside: int = 2

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.costs`: weights in sixteens."""
        strips = len(starts) - 1
        step = self.chunk // STRIP
        return starts[np.minimum(np.arange(0, strips + step, step), strips)]

    def emit_part(self, access: Access, part: Part) -> None:
        """See `ChunkKernel.emit_part`."""
        function = access.function
        feature, first = function.multiply(part.piece, self.piece), function.multiply(part.chunk, self.chunk)
        stop = function.smaller(function.add(feature, self.piece), "%inputs")
        left = function.smaller(function.integer("sub", "%outputs", first), self.chunk)
        with function.loop(0, left, STRIP) as output:
            self._emit_strip(access, (first, output), (feature, stop), part)

    def _emit_strip(self, access: Access, outputs: tuple[str, str], features: tuple[str, str], part: Part) -> None:
        function = access.function
        strip = function.integer("sdiv", function.add(*outputs), STRIP)
        start = function.load("i64", function.at("%starts", function.multiply(strip, 8)))
        slots = [
            function.add(start, function.multiply(function.integer("sdiv", feature, self.group), self.keep))
            for feature in features
        ]
        of_strip = function.integer("sdiv", function.multiply("%inputs", self.keep), self.group)
        emit_ahead(function, self.stored, (slots[0], slots[1]), of_strip)
        bounds = function.multiply(slots[0], STRIP), function.multiply(slots[1], STRIP)
        floats = expanded(function, self.stored, bounds, self.room(function, part))
        with function.loop(0, STRIP, self.beside) as lane:
            first = function.add(outputs[1], lane)
            waiting = [self.waiting(access, part.sums, function.add(first, number)) for number in range(self.beside)]
            totals = [variables for _, variables in waiting]
            with function.loop(*features, self.group) as feature:
                group = function.integer("sdiv", feature, self.group)
                slot = function.add(start, function.multiply(group, self.keep))
                for number in range(self.keep):
                    self._emit_slot(access, (floats, function.add(slot, number), lane), access.base(feature), totals)
            for places, variables in waiting:
                self.emit_waiting(access, places, variables)

    def _emit_slot(self, access: Access, where: tuple[str, str, str], features: str, totals: list[list[str]]) -> None:
        function, (floats, slot, lane), bits = access.function, where, place_bits(self.group)
        word = f"i{bits * STRIP}"
        found = function.index(word, function.at("%columns", function.multiply(slot, 2 * bits)))
        shifted = function.integer("lshr", found, function.multiply(lane, bits))
        first = function.add(function.multiply(slot, STRIP), lane)
        for number, variables in enumerate(totals):
            column = function.integer("and", function.integer("lshr", shifted, bits * number), self.group - 1)
            emit_products(access, (floats, function.add(first, number), access.place(features, column)), [variables])
