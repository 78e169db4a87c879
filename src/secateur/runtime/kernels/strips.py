"""Single weights times panels of activations, sixteen outputs beside one another in memory.

Features are taken a piece at a time, whose activations stay in the innermost cache: each weight needs one load of
activations for every product, and only that cache is fast enough. The sums of a chunk of outputs wait in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.emitter import Emitter, vector
from secateur.runtime.kernels.kernel import Kernel, begun, panels
from secateur.runtime.kernels.turning import FLOAT_BYTES, SIZES, Panel, Staged, read_floats

__all__ = ["STRIP", "ScatteredKernel"]

STRIP = 16
"""Outputs that lie beside one another."""


@dataclass(frozen=True, slots=True)
class ScatteredKernel(Kernel):
    """Any weights; see `Scattered` for how they lie. A unit is a chunk of outputs.

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
    beside: int = 2

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.panel.width

    def scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.scratch_bytes`: a panel, and the sums of a chunk."""
        return (inputs + self.chunk) * self.panel.feature_bytes

    def costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """See `Kernel.costs`: weights in sixteens, and a little for each chunk."""
        return starts[:: -(-inputs // self.piece) * (self.chunk // STRIP)]

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        staged = Staged(function, self.panel, STRIP)
        sums = function.at("%scratch", function.multiply("%inputs", self.panel.feature_bytes))
        chunks = function.integer("sdiv", function.add("%outputs", self.chunk - 1), self.chunk)
        pieces = function.integer("sdiv", function.add("%inputs", self.piece - 1), self.piece)
        with panels(function, self.panel, chunks) as run, function.loop(run.start, run.stop) as chunk:
            first = function.multiply(chunk, self.chunk)
            emit_bias(function, self.panel, sums, (first, self.chunk))
            with function.loop(0, pieces) as piece:
                features = function.at("%scratch", function.multiply(piece, self.piece * self.panel.feature_bytes))
                number = function.add(function.multiply(chunk, pieces), piece)
                strip = function.multiply(number, self.chunk // STRIP)
                with function.loop(0, self.chunk // STRIP) as offset:
                    self._emit_strip(function, function.add(strip, offset), features, sums)
            left = function.smaller(function.integer("sub", "%outputs", first), self.chunk)
            emit_results(function, staged, sums, (run.row, run.rows, first, left))
        return function

    def _emit_strip(self, function: Emitter, strip: str, features: str, sums: str) -> None:
        place = function.at("%starts", function.multiply(strip, 8))
        start, stop = function.load("i64", place), function.load("i64", function.at(place, 8))
        kind, lanes = vector("float", self.panel.lanes), self.panel.lanes
        with function.loop(0, STRIP, self.beside) as lane:
            order = function.at("%order", function.add(function.multiply(strip, STRIP), lane))
            pairs = []
            for number in range(self.beside):
                own = function.index("i8", function.at(order, number))
                pairs.append(self._sums(function, function.at(sums, function.multiply(own, self.panel.feature_bytes))))
            first, last = function.add(function.multiply(start, STRIP), lane), function.multiply(stop, STRIP)
            with function.loop(first, last, STRIP) as slot:
                for number, (_, totals) in enumerate(pairs):
                    own = function.add(slot, number)
                    column = function.index("i8", function.at("%columns", own))
                    place = function.at(features, function.multiply(column, self.panel.feature_bytes))
                    emit_product(function, self.panel, self.stored, (own, place), totals)
            for places, totals in pairs:
                for place, total in zip(places, totals, strict=True):
                    function.store(kind, function.get(kind, total), place, lanes * FLOAT_BYTES)

    def _sums(self, function: Emitter, place: str) -> tuple[list[str], list[str]]:
        """Where the sums of an output are kept, and variables that begin with them."""
        kind, size = vector("float", self.panel.lanes), self.panel.lanes * FLOAT_BYTES
        places = [function.at(place, number * size) for number in range(self.panel.vectors)]
        return places, [function.variable(kind, function.load(kind, some, size)) for some in places]


def emit_product(function: Emitter, panel: Panel, stored: str, where: tuple[str, str], totals: list[str]) -> None:
    """Add the weight in a slot times the activations at a place to variables."""
    kind, lanes, (slot, place) = vector("float", panel.lanes), panel.lanes, where
    number = read_floats(function, stored, 1, function.at("%values", function.multiply(slot, SIZES[stored])))
    weight = function.shuffle("<1 x float>", number, "poison", [0] * lanes)
    for vectors, total in enumerate(totals):
        some = function.load(kind, function.at(place, vectors * lanes * FLOAT_BYTES), lanes * FLOAT_BYTES)
        function.put(kind, function.fused(lanes, weight, some, function.get(kind, total)), total)


def emit_bias(function: Emitter, panel: Panel, sums: str, outputs: tuple[str, int]) -> None:
    """Begin the sums of a run of outputs with their bias; those behind the last output with its bias."""
    first, count = outputs
    last = function.integer("sub", "%outputs", 1)
    kind = vector("float", panel.lanes)
    with function.loop(0, count) as output:
        channel = function.smaller(function.add(first, output), last)
        bias = read_floats(function, "float", 1, function.at("%bias", function.multiply(channel, FLOAT_BYTES)))
        splat = function.shuffle("<1 x float>", bias, "poison", [0] * panel.lanes)
        place = function.at(sums, function.multiply(output, panel.feature_bytes))
        for number in range(panel.vectors):
            offset = number * panel.lanes * FLOAT_BYTES
            function.store(kind, splat, function.at(place, offset), panel.lanes * FLOAT_BYTES)


def emit_results(function: Emitter, staged: Staged, sums: str, where: tuple[str, str, str, str]) -> None:
    """Write sums into ``%y``; `where`: first row and how many, first output and how many."""
    row, rows, first, count = where
    with function.loop(0, count, STRIP) as output:
        left = function.smaller(function.integer("sub", count, output), STRIP)
        memory = function.at(sums, function.multiply(output, staged.panel.feature_bytes))
        staged.emit_writing(memory, (row, rows), (function.add(first, output), left))
