"""Pixels of the output of a convolution, whose activations are read where they lie in the padded input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.kernel import ARRAYS, NUMBERS, each_panel
from secateur.runtime.kernels.codegen.panel import Access, Panel
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES

__all__ = ["ImagePanel"]

GEOMETRY = ("offsets", "panels", "segments", "lines", "span", "pitch", "height", "across", "image")
"""What follows in a plan: the offsets of the window, and the numbers of `Fit` and `ConvolutionWindow`."""


@dataclass(frozen=True, slots=True)
class ImagePanel(Panel):
    """A run of pixels of an image of the output, line after line as they lie in the input.

    Attributes:
        lanes: Pixels in a vector.
        vectors: Vectors of a feature.
    """

    lanes: int
    vectors: int

    def scratch_bytes(self, inputs: int) -> int:  # noqa: ARG002
        """See `Panel.scratch_bytes`: none."""
        return 0

    def access(self, function: Emitter, outputs: int, stored: str) -> Access:
        """See `Panel.access`."""
        return ImageAccess(function, self, outputs, stored)


class ImageAccess(Access):
    """Which reads planes at ``%x``, and writes images of floats to ``%y``."""

    def __init__(self, function: Emitter, panel: ImagePanel, outputs: int, stored: str) -> None:
        super().__init__(function, panel, outputs, stored)
        for number, name in enumerate(GEOMETRY, start=len(ARRAYS) + len(NUMBERS)):
            kind = "ptr" if name == "offsets" else "i64"
            function.let(f"load {kind}, ptr {function.at('%plan', 8 * number)}, align 8, !invariant.load !0", name)
        self._source = self._goal = self._lines = ""

    @contextmanager
    def emit_runs(self, units: str) -> Iterator[tuple[str, str]]:
        """See `Access.emit_runs`."""
        function = self.function
        with each_panel(function, units) as (number, bounds):
            image, own = function.integer("sdiv", number, "%panels"), function.integer("srem", number, "%panels")
            line = function.multiply(function.integer("sdiv", own, "%segments"), "%lines")
            segment = function.multiply(function.integer("srem", own, "%segments"), "%span")
            # The last segment of a line begins earlier, and does some pixels again, rather than end behind the line.
            column = function.smaller(segment, function.integer("sub", "%across", "%span"))
            self._lines = function.smaller(function.integer("sub", "%height", line), "%lines")
            first = function.add(function.multiply(line, "%pitch"), column)
            place = function.add(function.multiply(image, "%image"), first)
            self._source = function.at("%x", function.multiply(place, FLOAT_BYTES))
            plane = function.multiply("%height", "%across")
            output = function.multiply(function.multiply(image, "%outputs"), plane)
            pixel = function.add(function.multiply(line, "%across"), column)
            self._goal = function.at("%y", function.multiply(function.add(output, pixel), FLOAT_BYTES))
            yield bounds

    def base(self, feature: str) -> str:
        """See `Access.base`: in the table of offsets."""
        return self.function.at("%offsets", self.function.multiply(feature, 4))

    def place(self, base: str, number: str) -> str:
        """See `Access.place`."""
        function = self.function
        offset = function.index("i32", function.at(base, function.multiply(number, 4)))
        return function.at(self._source, function.multiply(offset, FLOAT_BYTES))

    def loaded(self, place: str) -> list[str]:
        """See `Access.loaded`."""
        places = [self.function.at(place, number * self.vector_bytes) for number in range(self.vectors)]
        return [self.function.load(self.kind, some, FLOAT_BYTES) for some in places]

    @property
    def room(self) -> str:
        """See `Access.room`."""
        return "%scratch"

    def emit_prefetch(self, first: str, count: str) -> None:
        """See `Access.emit_prefetch`."""
        function = self.function
        with self._pixels(first, count, CACHE_LINE_BYTES // FLOAT_BYTES) as (_, _, _, goal):
            function.prefetch(goal, is_written=True, level=2)

    def emit_results(self, memory: str, first: str, count: str) -> None:
        """See `Access.emit_results`."""
        function = self.function
        with self._pixels(first, count, self.lanes) as (output, line, column, goal):
            kept = function.at(memory, function.multiply(output, self.feature_bytes))
            pixel = function.add(function.multiply(line, "%pitch"), column)
            place = function.at(kept, function.multiply(pixel, FLOAT_BYTES))
            result = self.result(place, function.add(first, output), FLOAT_BYTES)
            function.store_first(self.lanes, result, goal, function.integer("sub", "%span", column))

    @contextmanager
    def _pixels(self, first: str, count: str, step: int) -> Iterator[tuple[str, str, str, str]]:
        """For each of some outputs, each line and each so many pixels: these, and where the results belong."""
        function = self.function
        plane = function.multiply("%height", "%across")
        with (
            function.loop(0, count) as output,
            function.loop(0, self._lines) as line,
            function.loop(0, "%span", step) as column,
        ):
            before = function.multiply(function.add(first, output), plane)
            pixel = function.add(function.multiply(line, "%across"), column)
            goal = function.at(self._goal, function.multiply(function.add(before, pixel), FLOAT_BYTES))
            yield output, line, column, goal
