"""N of every M weights times activations, of which the index of each weight selects one within its group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.chunks import STRIP, ChunkKernel, Part, emit_products
from secateur.runtime.kernels.emitter import Emitter, vector
from secateur.runtime.kernels.gathering import FLOATS, FloatRowsKernel, emit_floats, emit_sums, numbered
from secateur.runtime.kernels.kernel import begun
from secateur.runtime.kernels.panels import Access, Panel
from secateur.runtime.kernels.strips import emit_ahead
from secateur.runtime.kernels.turning import AHEAD, FLOAT_BYTES, SIZES, expanded, read_floats

__all__ = ["SelectKernel", "SelectPanelKernel", "place_bits"]

WORDS = vector("i32", STRIP)

CHAINS = 4
"""Sums of a strip that are added to in turns; fewer where the rows of a batch take turns too."""


def place_bits(group: int) -> int:
    """Bits of a weight's place in a group of 2, 4, 8 or 16.

    Example:
        >>> place_bits(4), place_bits(8)
        (2, 4)
    """
    return 2 if group <= 4 else 4


@dataclass(frozen=True, slots=True)
class SelectKernel(FloatRowsKernel):
    """For a few rows of the batch; see `Grouped` for how weights lie. A unit is a strip of sixteen outputs.

    Attributes:
        keep: N.
        group: M.
        element: LLVM's type of activations.
        batch: Rows of the batch.
        permutes: Whether the processor permutes sixteen floats in one instruction (AVX-512); else it gathers them.
        stored: LLVM's type of the weights.
    """

    keep: int
    group: int
    element: str
    batch: int
    permutes: bool
    stored: str = "float"

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.costs`: weights in sixteens."""
        return starts

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        floats = emit_floats(function, self.element, self.batch)
        sums = function.variable(f"[{self.batch * STRIP} x float]")
        groups = function.integer("sdiv", "%inputs", self.group)
        turns = max(1, CHAINS // self.batch)
        at_once = max(1, turns // self.keep)
        middle = function.integer("and", groups, -at_once)
        with function.loop("%begin", "%end") as strip:
            start = function.load("i64", function.at("%starts", function.multiply(strip, 8)))
            chains = [[function.variable(FLOATS, "zeroinitializer") for _ in range(self.batch)] for _ in range(turns)]
            with function.loop(0, middle, at_once) as group:
                for number in range(at_once):
                    own = function.add(group, number)
                    self._emit_group(function, (start, own), floats, chains[number * self.keep % turns :])
            with function.loop(middle, groups) as group:
                self._emit_group(function, (start, group), floats, chains)
            for row in range(self.batch):
                total = function.sum([function.get(FLOATS, totals[row]) for totals in chains], STRIP)
                function.store(FLOATS, total, function.at(sums, row * STRIP * FLOAT_BYTES), 64)
            outputs = function.multiply(strip, STRIP), STRIP
            emit_sums(function, sums, outputs, (self.element, self.stored, self.batch))
        return function

    def _emit_group(self, function: Emitter, where: tuple[str, str], floats: str, chains: list[list[str]]) -> None:
        start, group = where
        slot = function.add(start, function.multiply(group, self.keep))
        feature = function.at(floats, function.multiply(group, self.group * FLOAT_BYTES))
        sources = [function.at(feature, function.multiply("%inputs", row * FLOAT_BYTES)) for row in range(self.batch)]
        for number in range(self.keep):
            own = function.add(slot, number)
            place = function.at("%values", function.multiply(own, STRIP * SIZES[self.stored]))
            function.prefetch(function.at(place, AHEAD), level=2)
            weights = read_floats(function, self.stored, STRIP, place)
            places = self._places(function, own)
            for source, total in zip(sources, chains[number % len(chains)], strict=True):
                some = self._selected(function, source, places)
                function.put(FLOATS, function.fused(STRIP, weights, some, function.get(FLOATS, total)), total)

    def _places(self, function: Emitter, slot: str) -> str:
        """The places of sixteen weights, one to a lane; what is above their bits means nothing."""
        bits = place_bits(self.group)
        count = bits * STRIP // 32
        words = function.load(vector("i32", count), function.at("%columns", function.multiply(slot, 4 * count)), 4)
        spread = function.shuffle(
            vector("i32", count), words, "poison", [lane * count // STRIP for lane in range(STRIP)]
        )
        shifts = ", ".join(f"i32 {bits * lane % 32}" for lane in range(STRIP))
        return function.let(f"lshr {WORDS} {spread}, <{shifts}>")

    def _selected(self, function: Emitter, source: str, places: str) -> str:
        if not self.permutes:
            mask = ", ".join([f"i32 {self.group - 1}"] * STRIP)
            exact = function.let(f"and {WORDS} {places}, <{mask}>")
            return function.gather(numbered(function, source, exact, "i32"))
        kind = vector("float", self.group)
        some = function.load(kind, source, FLOAT_BYTES)
        spread = function.shuffle(kind, some, "poison", [lane % self.group for lane in range(STRIP)])
        name = "vpermilvar.ps.512" if self.group <= 4 else "permvar.sf.512"
        return function.call(FLOATS, f"llvm.x86.avx512.{name}", [(FLOATS, spread), (WORDS, places)])


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
