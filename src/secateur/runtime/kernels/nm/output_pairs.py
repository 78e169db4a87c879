"""Multiply pairs of outputs by activations, which are loaded once for two weights that share an input."""

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
from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.panel import ActivationPanel, PanelAccess
from secateur.runtime.kernels.codegen.small_batch import GatherKernel
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, FLOATS, PREFETCH_BYTES, reduce_lanes, widen_weights
from secateur.runtime.kernels.formats.base import STRIP
from secateur.runtime.kernels.formats.output_pairs import PAIR, SLOTS

__all__ = ["OutputPairPanelKernel", "OutputPairSmallBatchKernel"]

PAIR_BYTES = 3
"""Bytes of `OutputPairFormat.order` per pair, for two outputs and the number of slots that share their input."""


@dataclass(frozen=True, slots=True)
class OutputPairPanelKernel(ChunkKernel):
    """Multiplies weights in `OutputPairFormat` by panels.

    Attributes:
        chunk: Number of outputs in a chunk.
        piece: Number of features in a piece.
        panel: The panel.
        weight_type: LLVM type of the weights.
    """

    chunk: int
    piece: int
    panel: ActivationPanel
    weight_type: str = "float"

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """See `Kernel.get_cumulative_costs`. The cost is the number of vectors of sixteen weights."""
        return starts[:: self.count_pieces(inputs) * (self.chunk // PAIR)]

    def emit_piece(self, access: PanelAccess, piece: ChunkPiece) -> None:
        """See `ChunkKernel.emit_piece`."""
        function, pairs = access.function, self.chunk // PAIR
        features = self.get_feature_base(access, piece)
        first = function.mul(piece.emit_number(function), pairs)
        with function.loop(first, function.add(first, pairs)) as pair:
            self._emit_pair(access, pair, features, piece)

    def _emit_pair(self, access: PanelAccess, pair: str, features: str, piece: ChunkPiece) -> None:
        function = access.function
        bounds = load_pair_bounds(function, pair)
        *outputs, shared = load_pair_order(function, pair)
        emit_weight_prefetch(function, self.weight_type, bounds, PREFETCH_BYTES // STRIP_BYTES)
        weight_bounds = function.mul(bounds[0], STRIP), function.mul(bounds[1], STRIP)
        floats = widen_weights(function, self.weight_type, weight_bounds, self.get_weight_buffer(function, piece))
        sums = [self.load_sums(access, piece.sums, output) for output in outputs]
        totals = [variables for _, variables in sums]
        start, stop = function.mul(bounds[0], SLOTS), function.mul(bounds[1], SLOTS)
        middle = function.add(start, shared)
        with function.loop(start, middle) as slot:
            first = function.mul(slot, PAIR)
            emit_products(access, (floats, first, self._get_activations(access, features, first)), totals)
        with function.loop(middle, stop) as slot:
            for number, variables in enumerate(totals):
                weight = function.add(function.mul(slot, PAIR), number)
                operands = floats, weight, self._get_activations(access, features, weight)
                emit_products(access, operands, [variables])
        for addresses, variables in sums:
            self.store_sums(access, addresses, variables)

    def _get_activations(self, access: PanelAccess, features: str, weight: str) -> str:
        """Return the address of the activations that a weight multiplies."""
        return access.get_address(features, access.function.load_index("i8", access.function.gep("%columns", weight)))


@dataclass(frozen=True, slots=True)
class OutputPairSmallBatchKernel(GatherKernel):
    """Multiplies weights in `OutputPairFormat` by a small batch. See `GatherKernel` for the attributes."""

    chunk: int
    piece: int
    activation_type: str
    batch: int
    weight_type: str = "float"

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[Any]:
        """See `Kernel.get_cumulative_costs`. The cost is the number of vectors of sixteen weights."""
        return starts[:: -(-inputs // self.piece) * (self.chunk // PAIR)]

    def emit_piece(self, function: Emitter, piece: str, features: str, sums: str) -> None:
        """See `GatherKernel.emit_piece`."""
        pairs = self.chunk // PAIR
        first = function.mul(piece, pairs)
        with function.loop(first, function.add(first, pairs)) as pair:
            self._emit_pair(function, pair, features, sums)

    def _emit_pair(self, function: Emitter, pair: str, features: str, sums: str) -> None:
        totals = [function.alloca(FLOATS, "zeroinitializer") for _ in range(self.batch)]
        with function.loop(*load_pair_bounds(function, pair)) as number:
            self.emit_vector_product(function, number, features, totals)
        *outputs, _ = load_pair_order(function, pair)
        for row, total in enumerate(totals):
            both = reduce_lanes(function, function.load_variable(FLOATS, total), STRIP, PAIR)
            for side, output in enumerate(outputs):
                offset = function.mul(function.add(output, row * self.chunk), FLOAT_BYTES)
                address = function.gep(sums, offset)
                product = function.shuffle(vector("float", PAIR), both, "poison", [side])
                previous = function.load("<1 x float>", address, FLOAT_BYTES)
                updated = function.assign(f"fadd <1 x float> {previous}, {product}")
                function.store("<1 x float>", updated, address, FLOAT_BYTES)


def load_pair_bounds(function: Emitter, pair: str) -> tuple[str, str]:
    """Load the indices of the first vector of sixteen weights of a pair, and of the vector after its last one."""
    address = function.gep("%starts", function.mul(pair, 8))
    return function.load("i64", address), function.load("i64", function.gep(address, 8))


def load_pair_order(function: Emitter, pair: str) -> list[str]:
    """Load the positions of a pair's two outputs in the chunk, and the number of slots that share their input."""
    address = function.gep("%order", function.mul(pair, PAIR_BYTES))
    return [function.load_index("i8", function.gep(address, number)) for number in range(PAIR_BYTES)]
