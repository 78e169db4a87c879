"""N of every M weights times a few rows of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import begun
from secateur.runtime.kernels.codegen.small_batch import FloatRowsKernel, emit_floats, emit_sums, numbered
from secateur.runtime.kernels.codegen.vectors import AHEAD, FLOAT_BYTES, FLOATS, SIZES, WORDS, read_floats
from secateur.runtime.kernels.formats.base import STRIP
from secateur.runtime.kernels.formats.nm import place_bits

__all__ = ["SelectKernel"]

CHAINS = 4
"""Sums of a strip that are added to in turns; fewer where the rows of a batch take turns too."""


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
