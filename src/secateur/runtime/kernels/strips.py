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
from secateur.runtime.kernels.turning import (
    AHEAD,
    FLOAT_BYTES,
    LINE_BYTES,
    SIZES,
    Panel,
    Staged,
    emit_results,
    expanded,
    first_sum,
    spread,
)

__all__ = ["STRIP", "ScatteredKernel"]

STRIP = 16
"""Outputs that lie beside one another."""

STRIP_BYTES = STRIP * FLOAT_BYTES
"""Of a weight of each, as floats."""


class StripKernel(Kernel):
    """For panels of activations and strips of outputs, of which a chunk's sums wait in memory.

    Attributes:
        chunk: Outputs of a chunk.
        piece: Features of a piece.
        panel: How activations are packed.
    """

    chunk: int
    piece: int
    panel: Panel

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.panel.width

    def scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.scratch_bytes`: a panel, the sums of a chunk, and a strip's weights of a piece as floats."""
        return (inputs + self.chunk) * self.panel.feature_bytes + self.piece * STRIP * FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class ScatteredKernel(StripKernel):
    """Any weights; see `Scattered` for how they lie. A unit is a chunk of outputs.

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
        return starts[:: -(-inputs // self.piece) * (self.chunk // STRIP)]

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = begun()
        staged = Staged(function, self.panel, STRIP, self.stored)
        sums = function.at("%scratch", function.multiply("%inputs", self.panel.feature_bytes))
        chunks = function.integer("sdiv", function.add("%outputs", self.chunk - 1), self.chunk)
        pieces = function.integer("sdiv", function.add("%inputs", self.piece - 1), self.piece)
        with panels(function, self.panel, chunks) as run, function.loop(run.start, run.stop) as chunk:
            first = function.multiply(chunk, self.chunk)
            left = function.smaller(function.integer("sub", "%outputs", first), self.chunk)
            staged.emit_prefetch((run.row, run.rows), (first, left))
            emit_bias(function, self.panel, self.stored, sums, (first, self.chunk))
            with function.loop(0, pieces) as piece:
                features = function.at("%scratch", function.multiply(piece, self.piece * self.panel.feature_bytes))
                number = function.add(function.multiply(chunk, pieces), piece)
                strip = function.multiply(number, self.chunk // STRIP)
                with function.loop(0, self.chunk // STRIP) as offset:
                    self._emit_strip(function, function.add(strip, offset), features, sums)
            emit_results(function, staged, sums, (run.row, run.rows, first, left))
        return function

    def _emit_strip(self, function: Emitter, strip: str, features: str, sums: str) -> None:
        place = function.at("%starts", function.multiply(strip, 8))
        start, stop = function.load("i64", place), function.load("i64", function.at(place, 8))
        kind, lanes = vector("float", self.panel.lanes), self.panel.lanes
        emit_ahead(function, self.stored, (start, stop), AHEAD // STRIP_BYTES)
        bounds = function.multiply(start, STRIP), function.multiply(stop, STRIP)
        room = function.at(sums, self.chunk * self.panel.feature_bytes)
        floats = expanded(function, self.stored, bounds, room)
        with function.loop(0, STRIP, self.beside) as lane:
            order = function.at("%order", function.add(function.multiply(strip, STRIP), lane))
            pairs = []
            for number in range(self.beside):
                own = function.index("i8", function.at(order, number))
                pairs.append(self._sums(function, function.at(sums, function.multiply(own, self.panel.feature_bytes))))
            with function.loop(function.add(bounds[0], lane), bounds[1], STRIP) as slot:
                for number, (_, totals) in enumerate(pairs):
                    own = function.add(slot, number)
                    column = function.index("i8", function.at("%columns", own))
                    place = function.at(features, function.multiply(column, self.panel.feature_bytes))
                    emit_product(function, self.panel, (floats, own, place), totals)
            for places, totals in pairs:
                for place, total in zip(places, totals, strict=True):
                    function.store(kind, function.get(kind, total), place, lanes * FLOAT_BYTES)

    def _sums(self, function: Emitter, place: str) -> tuple[list[str], list[str]]:
        """Where the sums of an output are kept, and variables that begin with them."""
        kind, size = vector("float", self.panel.lanes), self.panel.lanes * FLOAT_BYTES
        places = [function.at(place, number * size) for number in range(self.panel.vectors)]
        return places, [function.variable(kind, function.load(kind, some, size)) for some in places]


def emit_ahead(function: Emitter, stored: str, bounds: tuple[str, str], distance: str | int) -> None:
    """Ask for weights that come later, as many as a run has.

    Args:
        function: Where to.
        stored: LLVM's type of the weights.
        bounds: First sixteen weights of the run, and behind the last.
        distance: From these to those, in sixteens.
    """
    start, stop = bounds
    size = STRIP * SIZES[stored]
    with function.loop(function.add(start, distance), function.add(stop, distance), LINE_BYTES // size) as slot:
        function.prefetch(function.at("%values", function.multiply(slot, size)), level=2)


def emit_product(function: Emitter, panel: Panel, where: tuple[str, str, str], totals: list[str]) -> None:
    """Add one of the floats at a place times the activations at another to variables."""
    kind, lanes, (floats, slot, place) = vector("float", panel.lanes), panel.lanes, where
    weight = spread(function, floats, slot, lanes)
    for vectors, total in enumerate(totals):
        some = function.load(kind, function.at(place, vectors * lanes * FLOAT_BYTES), lanes * FLOAT_BYTES)
        function.put(kind, function.fused(lanes, weight, some, function.get(kind, total)), total)


def emit_bias(function: Emitter, panel: Panel, stored: str, sums: str, outputs: tuple[str, int]) -> None:
    """Begin the sums of a run of outputs; those behind the last output like its."""
    first, count = outputs
    last = function.integer("sub", "%outputs", 1)
    with function.loop(0, count) as output:
        begin = first_sum(function, stored, function.smaller(function.add(first, output), last), panel.lanes)
        place = function.at(sums, function.multiply(output, panel.feature_bytes))
        for number in range(panel.vectors):
            goal = function.at(place, number * panel.lanes * FLOAT_BYTES)
            function.store(vector("float", panel.lanes), begin, goal, panel.lanes * FLOAT_BYTES)
