"""Multiply unstructured weights by a small batch, gathering activations for sixteen weights at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.small_batch import GatherKernel, get_float_addresses
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, FLOATS
from secateur.runtime.kernels.formats.base import STRIP

__all__ = ["UnstructuredSmallBatchKernel"]

UNROLL = 4
"""Number of independent sums of a strip. Four are 1.5 times as fast as one or two if weights come from memory."""


@dataclass(frozen=True, slots=True)
class UnstructuredSmallBatchKernel(GatherKernel):
    """Multiplies weights in `UnstructuredFormat` by a small batch. See `GatherKernel` for the attributes."""

    chunk: int
    piece: int
    activation_type: str
    batch: int
    weight_type: str = "float"

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:
        """See `Kernel.get_cumulative_costs`. The cost is the number of vectors of sixteen weights."""
        return starts[:: -(-inputs // self.piece) * (self.chunk // STRIP)]

    def emit_piece(self, function: Emitter, piece: str, features: str, sums: str) -> None:
        """See `GatherKernel.emit_piece`."""
        strips = self.chunk // STRIP
        first = function.mul(piece, strips)
        with function.loop(first, function.add(first, strips)) as strip:
            self._emit_strip(function, strip, features, sums)

    def _emit_strip(self, function: Emitter, strip: str, features: str, sums: str) -> None:
        address = function.gep("%starts", function.mul(strip, 8))
        start, stop = function.load("i64", address), function.load("i64", function.gep(address, 8))
        partial_sums = [[function.alloca(FLOATS, "zeroinitializer") for _ in range(self.batch)] for _ in range(UNROLL)]
        unrolled = function.int_op("and", function.int_op("sub", stop, start), -UNROLL)
        middle = function.add(start, unrolled)
        with function.loop(start, middle, UNROLL) as slot:
            for number, totals in enumerate(partial_sums):
                self.emit_vector_product(function, function.add(slot, number), features, totals)
        with function.loop(middle, stop) as slot:
            self.emit_vector_product(function, slot, features, partial_sums[0])
        order = function.load(vector("i8", STRIP), function.gep("%order", function.mul(strip, STRIP)))
        for row in range(self.batch):
            parts = [function.load_variable(FLOATS, totals[row]) for totals in partial_sums]
            total = function.sum_vectors(parts, STRIP)
            addresses = get_float_addresses(function, function.gep(sums, row * self.chunk * FLOAT_BYTES), order)
            function.scatter(function.assign(f"fadd {FLOATS} {total}, {function.gather(addresses)}"), addresses)
