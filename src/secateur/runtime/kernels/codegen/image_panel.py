"""Panels of output pixels of a convolution, with activations that are read directly from the padded input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.kernel import ARRAYS, NUMBERS, loop_over_panels
from secateur.runtime.kernels.codegen.panel import ActivationPanel, PanelAccess
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES

__all__ = ["GEOMETRY", "ImagePanel"]

GEOMETRY = ("offsets", "panels", "segments", "lines", "span", "pitch", "height", "across", "image")
"""Additional values in the plan of a convolution: the address of `ConvolutionWindow.offsets`, and the sizes of
`PanelGrid` and `ConvolutionWindow`."""


@dataclass(frozen=True, slots=True)
class ImagePanel(ActivationPanel):
    """Consecutive pixels of an output image, line by line, with the line pitch of the input.

    Attributes:
        lanes: Number of pixels in a vector.
        vectors: Number of vectors per feature.
    """

    lanes: int
    vectors: int

    def get_scratch_bytes(self, inputs: int) -> int:  # noqa: ARG002
        """See `ActivationPanel.get_scratch_bytes`. None is needed."""
        return 0

    def create_access(self, function: Emitter, outputs: int, weight_type: str) -> PanelAccess:
        """See `ActivationPanel.create_access`."""
        return ImagePanelAccess(function, self, outputs, weight_type)


class ImagePanelAccess(PanelAccess):
    """Reads planes at ``%x``, and writes float images to ``%y``."""

    def __init__(self, function: Emitter, panel: ImagePanel, outputs: int, weight_type: str) -> None:
        super().__init__(function, panel, outputs, weight_type)
        for number, name in enumerate(GEOMETRY, start=len(ARRAYS) + len(NUMBERS)):
            kind = "ptr" if name == "offsets" else "i64"
            function.assign(f"load {kind}, ptr {function.gep('%plan', 8 * number)}, align 8, !invariant.load !0", name)
        self._source = self._results = self._lines = ""

    @contextmanager
    def emit_panel_loop(self, units: str) -> Iterator[tuple[str, str]]:
        """See `PanelAccess.emit_panel_loop`."""
        function = self.function
        with loop_over_panels(function, units) as (number, bounds):
            image, panel = function.int_op("sdiv", number, "%panels"), function.int_op("srem", number, "%panels")
            line = function.mul(function.int_op("sdiv", panel, "%segments"), "%lines")
            segment = function.mul(function.int_op("srem", panel, "%segments"), "%span")
            # The last segment of a line starts earlier and repeats some pixels, so that it ends with the line.
            column = function.smin(segment, function.int_op("sub", "%across", "%span"))
            self._lines = function.smin(function.int_op("sub", "%height", line), "%lines")
            first = function.add(function.mul(line, "%pitch"), column)
            index = function.add(function.mul(image, "%image"), first)
            self._source = function.gep("%x", function.mul(index, FLOAT_BYTES))
            plane = function.mul("%height", "%across")
            output = function.mul(function.mul(image, "%outputs"), plane)
            pixel = function.add(function.mul(line, "%across"), column)
            self._results = function.gep("%y", function.mul(function.add(output, pixel), FLOAT_BYTES))
            yield bounds

    def get_base(self, feature: str) -> str:
        """See `PanelAccess.get_base`. The base is an address in the table of offsets."""
        return self.function.gep("%offsets", self.function.mul(feature, 4))

    def get_address(self, base: str, number: str) -> str:
        """See `PanelAccess.get_address`."""
        function = self.function
        offset = function.load_index("i32", function.gep(base, function.mul(number, 4)))
        return function.gep(self._source, function.mul(offset, FLOAT_BYTES))

    def load_activations(self, address: str) -> list[str]:
        """See `PanelAccess.load_activations`."""
        addresses = [self.function.gep(address, number * self.vector_bytes) for number in range(self.vectors)]
        return [self.function.load(self.kind, source, FLOAT_BYTES) for source in addresses]

    @property
    def free_scratch(self) -> str:
        """See `PanelAccess.free_scratch`."""
        return "%scratch"

    def emit_result_prefetch(self, first: str, count: str) -> None:
        """See `PanelAccess.emit_result_prefetch`."""
        function = self.function
        with self._loop_over_pixels(first, count, CACHE_LINE_BYTES // FLOAT_BYTES) as (_, _, _, results):
            function.prefetch(results, is_written=True, level=2)

    def emit_results(self, memory: str, first: str, count: str) -> None:
        """See `PanelAccess.emit_results`."""
        function = self.function
        with self._loop_over_pixels(first, count, self.lanes) as (output, line, column, results):
            sums = function.gep(memory, function.mul(output, self.feature_bytes))
            pixel = function.add(function.mul(line, "%pitch"), column)
            address = function.gep(sums, function.mul(pixel, FLOAT_BYTES))
            result = self.load_result(address, function.add(first, output), FLOAT_BYTES)
            function.store_first(self.lanes, result, results, function.int_op("sub", "%span", column))

    @contextmanager
    def _loop_over_pixels(self, first: str, count: str, step: int) -> Iterator[tuple[str, str, str, str]]:
        """Emit the body for each output, line and `step` pixels, and yield these and the address of the results."""
        function = self.function
        plane = function.mul("%height", "%across")
        with (
            function.loop(0, count) as output,
            function.loop(0, self._lines) as line,
            function.loop(0, "%span", step) as column,
        ):
            plane_start = function.mul(function.add(first, output), plane)
            pixel = function.add(function.mul(line, "%across"), column)
            results = function.gep(self._results, function.mul(function.add(plane_start, pixel), FLOAT_BYTES))
            yield output, line, column, results
