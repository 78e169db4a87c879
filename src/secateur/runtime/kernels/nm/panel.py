"""Multiply N:M weights by panels of activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.chunk_kernel import ChunkKernel, ChunkPiece, emit_products, emit_weight_prefetch
from secateur.runtime.kernels.codegen.panel import ActivationPanel, PanelAccess
from secateur.runtime.kernels.codegen.vectors import widen_weights
from secateur.runtime.kernels.formats.base import STRIP
from secateur.runtime.kernels.formats.nm import get_position_bits

__all__ = ["NMPanelKernel"]


@dataclass(frozen=True, slots=True)
class NMPanelKernel(ChunkKernel):
    """Multiplies weights in `NMFormat` by panels.

    Attributes:
        keep: N.
        group: M.
        chunk: Number of outputs in a chunk.
        piece: Number of features in a piece, a multiple of M.
        panel: The panel.
        weight_type: LLVM type of the weights.
        interleave: Number of outputs that are computed side by side, to hide the latency of FMAs.
    """

    keep: int
    group: int
    chunk: int
    piece: int
    panel: ActivationPanel
    weight_type: str = "float"
    interleave: int = 2

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.get_cumulative_costs`. The cost is the number of vectors of sixteen weights."""
        strips = len(starts) - 1
        step = self.chunk // STRIP
        return starts[np.minimum(np.arange(0, strips + step, step), strips)]

    def emit_piece(self, access: PanelAccess, piece: ChunkPiece) -> None:
        """See `ChunkKernel.emit_piece`."""
        function = access.function
        feature, first = function.mul(piece.piece, self.piece), function.mul(piece.chunk, self.chunk)
        stop = function.smin(function.add(feature, self.piece), "%inputs")
        left = function.smin(function.int_op("sub", "%outputs", first), self.chunk)
        with function.loop(0, left, STRIP) as output:
            self._emit_strip(access, (first, output), (feature, stop), piece)

    def _emit_strip(
        self, access: PanelAccess, outputs: tuple[str, str], features: tuple[str, str], piece: ChunkPiece
    ) -> None:
        """Multiply a strip.

        Args:
            access: Access to the panel.
            outputs: First output of the chunk, and offset of the strip in the chunk.
            features: First feature of the piece, and the feature after its last one.
            piece: The piece.
        """
        function = access.function
        strip = function.int_op("sdiv", function.add(*outputs), STRIP)
        start = function.load("i64", function.gep("%starts", function.mul(strip, 8)))
        slots = [
            function.add(start, function.mul(function.int_op("sdiv", feature, self.group), self.keep))
            for feature in features
        ]
        strip_length = function.int_op("sdiv", function.mul("%inputs", self.keep), self.group)
        emit_weight_prefetch(function, self.weight_type, (slots[0], slots[1]), strip_length)
        bounds = function.mul(slots[0], STRIP), function.mul(slots[1], STRIP)
        floats = widen_weights(function, self.weight_type, bounds, self.get_weight_buffer(function, piece))
        with function.loop(0, STRIP, self.interleave) as lane:
            first = function.add(outputs[1], lane)
            sums = [
                self.load_sums(access, piece.sums, function.add(first, number)) for number in range(self.interleave)
            ]
            totals = [variables for _, variables in sums]
            with function.loop(*features, self.group) as feature:
                group = function.int_op("sdiv", feature, self.group)
                slot = function.add(start, function.mul(group, self.keep))
                for number in range(self.keep):
                    weight = floats, function.add(slot, number), lane
                    self._emit_slot(access, weight, access.get_base(feature), totals)
            for addresses, variables in sums:
                self.store_sums(access, addresses, variables)

    def _emit_slot(
        self, access: PanelAccess, weight: tuple[str, str, str], features: str, totals: list[list[str]]
    ) -> None:
        """Multiply one weight of each interleaved output.

        Args:
            access: Access to the panel.
            weight: Address of the weights, index of the vector of sixteen weights, and the first lane.
            features: Base of the features of the group.
            totals: Variables by output, then by vector.
        """
        function, (floats, slot, lane), bits = access.function, weight, get_position_bits(self.group)
        positions = function.load_index(f"i{bits * STRIP}", function.gep("%columns", function.mul(slot, 2 * bits)))
        shifted = function.int_op("lshr", positions, function.mul(lane, bits))
        first = function.add(function.mul(slot, STRIP), lane)
        for number, variables in enumerate(totals):
            column = function.int_op("and", function.int_op("lshr", shifted, bits * number), self.group - 1)
            operands = floats, function.add(first, number), access.get_address(features, column)
            emit_products(access, operands, [variables])
