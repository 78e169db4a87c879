"""Multiply unstructured weights by panels of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.chunk_kernel import (
    STRIP_BYTES,
    ChunkKernel,
    ChunkPiece,
    emit_products,
    emit_weight_prefetch,
)
from secateur.runtime.kernels.codegen.panel import ActivationPanel, PanelAccess
from secateur.runtime.kernels.codegen.vectors import PREFETCH_BYTES, widen_weights
from secateur.runtime.kernels.formats.base import STRIP

__all__ = ["UnstructuredPanelKernel"]


@dataclass(frozen=True, slots=True)
class UnstructuredPanelKernel(ChunkKernel):
    """Multiplies weights in `UnstructuredFormat` by panels.

    Attributes:
        chunk: Number of outputs in a chunk.
        piece: Number of features in a piece.
        panel: The panel.
        weight_type: LLVM type of the weights.
        interleave: Number of outputs that are computed side by side, to hide the latency of FMAs.
    """

    chunk: int
    piece: int
    panel: ActivationPanel
    weight_type: str = "float"
    interleave: int = 2

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """See `Kernel.get_cumulative_costs`. The cost is the number of vectors of sixteen weights."""
        return starts[:: self.count_pieces(inputs) * (self.chunk // STRIP)]

    def emit_piece(self, access: PanelAccess, piece: ChunkPiece) -> None:
        """See `ChunkKernel.emit_piece`."""
        function, strips = access.function, self.chunk // STRIP
        features = self.get_feature_base(access, piece)
        first = function.mul(piece.emit_number(function), strips)
        with function.loop(first, function.add(first, strips)) as strip:
            self._emit_strip(access, strip, features, piece)

    def _emit_strip(self, access: PanelAccess, strip: str, features: str, piece: ChunkPiece) -> None:
        function = access.function
        address = function.gep("%starts", function.mul(strip, 8))
        start, stop = function.load("i64", address), function.load("i64", function.gep(address, 8))
        emit_weight_prefetch(function, self.weight_type, (start, stop), PREFETCH_BYTES // STRIP_BYTES)
        bounds = function.mul(start, STRIP), function.mul(stop, STRIP)
        floats = widen_weights(function, self.weight_type, bounds, self.get_weight_buffer(function, piece))
        with function.loop(0, STRIP, self.interleave) as lane:
            order = function.gep("%order", function.add(function.mul(strip, STRIP), lane))
            outputs = [function.load_index("i8", function.gep(order, number)) for number in range(self.interleave)]
            sums = [self.load_sums(access, piece.sums, output) for output in outputs]
            with function.loop(function.add(bounds[0], lane), bounds[1], STRIP) as slot:
                columns = function.load_index(f"i{8 * self.interleave}", function.gep("%columns", slot))
                for number, (_, totals) in enumerate(sums):
                    weight = function.add(slot, number)
                    column = function.int_op("and", function.int_op("lshr", columns, 8 * number), 255)
                    emit_products(access, (floats, weight, access.get_address(features, column)), [totals])
            for addresses, totals in sums:
                self.store_sums(access, addresses, totals)
