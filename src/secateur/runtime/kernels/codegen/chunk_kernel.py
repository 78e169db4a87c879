"""Define the base class of panel kernels that process features piece by piece.

The activations of a piece stay in the L1 cache: if kernels load activations for every product or every second product,
only the L1 cache is fast enough. Between pieces, the sums of a chunk of outputs are stored in memory.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.kernel import Kernel, start_kernel
from secateur.runtime.kernels.codegen.panel import ActivationPanel, PanelAccess
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, TYPE_BYTES, broadcast_float, load_initial_sum
from secateur.runtime.kernels.formats.base import CACHE_LINE_BYTES, STRIP

__all__ = ["STRIP_BYTES", "ChunkKernel", "ChunkPiece", "emit_products", "emit_weight_prefetch"]

STRIP_BYTES = STRIP * FLOAT_BYTES
"""Size in bytes of one float for each output of a strip."""


class ChunkPiece(NamedTuple):
    """A piece of the features of a chunk of outputs.

    Attributes:
        chunk: Index of the chunk.
        piece: Index of the piece in the chunk.
        pieces: Number of pieces in a chunk.
        sums: Address of the sums of the chunk, output by output.
    """

    chunk: str
    piece: str
    pieces: str
    sums: str

    def emit_number(self, function: Emitter) -> str:
        """Return the index of the piece over all chunks."""
        return function.add(function.mul(self.chunk, self.pieces), self.piece)


class ChunkKernel(Kernel):
    """Base class of panel kernels whose unit is a chunk of outputs.

    Attributes:
        chunk: Number of outputs in a chunk.
        piece: Number of features in a piece.
        panel: The panel.
        weight_type: LLVM type of the weights.
    """

    chunk: int
    piece: int
    panel: ActivationPanel
    weight_type: str

    @property
    def width(self) -> int:
        """See `Kernel.width`."""
        return self.panel.width

    def get_scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.get_scratch_bytes`. It contains the panel, the sums of a chunk, and the floats of a strip."""
        sums = self.chunk * self.panel.feature_bytes
        return self.panel.get_scratch_bytes(inputs) + sums + self.piece * STRIP * FLOAT_BYTES

    def count_pieces(self, inputs: int) -> int:
        """Return the number of pieces in a chunk."""
        return -(-inputs // self.piece)

    @abstractmethod
    def emit_piece(self, access: PanelAccess, piece: ChunkPiece) -> None:
        """Add the products of a piece to the sums."""

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = start_kernel()
        access = self.panel.create_access(function, STRIP, self.weight_type)
        sums = access.free_scratch
        chunks = function.int_op("sdiv", function.add("%outputs", self.chunk - 1), self.chunk)
        pieces = function.int_op("sdiv", function.add("%inputs", self.piece - 1), self.piece)
        with access.emit_panel_loop(chunks) as bounds, function.loop(*bounds) as chunk:
            first = function.mul(chunk, self.chunk)
            left = function.smin(function.int_op("sub", "%outputs", first), self.chunk)
            access.emit_result_prefetch(first, left)
            self._emit_initial_sums(access, sums, first)
            with function.loop(0, pieces) as piece:
                self.emit_piece(access, ChunkPiece(chunk, piece, pieces, sums))
            access.emit_results(sums, first, left)
        return function

    def get_feature_base(self, access: PanelAccess, piece: ChunkPiece) -> str:
        """Return the base of the features of a piece. See `PanelAccess.get_base`."""
        return access.get_base(access.function.mul(piece.piece, self.piece))

    def get_weight_buffer(self, function: Emitter, piece: ChunkPiece) -> str:
        """Return the address of the buffer for the weights of a strip and piece as floats."""
        return function.gep(piece.sums, self.chunk * self.panel.feature_bytes)

    def load_sums(self, access: PanelAccess, sums: str, output: str) -> tuple[list[str], list[str]]:
        """Load the sums of an output into variables, and return the addresses of the sums and the variables."""
        function, kind, size = access.function, access.kind, access.vector_bytes
        first = function.gep(sums, function.mul(output, access.feature_bytes))
        addresses = [function.gep(first, number * size) for number in range(access.vectors)]
        return addresses, [function.alloca(kind, function.load(kind, address, size)) for address in addresses]

    def store_sums(self, access: PanelAccess, addresses: list[str], totals: list[str]) -> None:
        """Store variables from `load_sums` at the addresses of their sums."""
        function, kind = access.function, access.kind
        for address, total in zip(addresses, totals, strict=True):
            function.store(kind, function.load_variable(kind, total), address, access.vector_bytes)

    def _emit_initial_sums(self, access: PanelAccess, sums: str, first: str) -> None:
        """Initialize the sums of a chunk. Outputs after the last one repeat its bias."""
        function, size = access.function, access.vector_bytes
        last = function.int_op("sub", "%outputs", 1)
        with function.loop(0, self.chunk) as output:
            channel = function.smin(function.add(first, output), last)
            initial = load_initial_sum(function, self.weight_type, channel, access.lanes)
            address = function.gep(sums, function.mul(output, access.feature_bytes))
            for number in range(access.vectors):
                function.store(access.kind, initial, function.gep(address, number * size), size)


def emit_products(access: PanelAccess, operands: tuple[str, str, str], totals: list[list[str]]) -> None:
    """Multiply weights of several outputs by the activations of one feature, and add the products to their sums.

    Args:
        access: Access to the panel.
        operands: Address of the weights, index of the first one, and address of the activations.
        totals: Variables by output, then by vector.
    """
    function, (floats, first, address) = access.function, operands
    weights = [
        broadcast_float(function, floats, function.add(first, number), access.lanes) for number in range(len(totals))
    ]
    for number, activations in enumerate(access.load_activations(address)):
        for weight, variables in zip(weights, totals, strict=True):
            function.accumulate(access.lanes, weight, activations, variables[number])


def emit_weight_prefetch(function: Emitter, weight_type: str, bounds: tuple[str, str], distance: str | int) -> None:
    """Prefetch the weights at a distance from a run, as many as the run contains.

    Args:
        function: The function under construction.
        weight_type: LLVM type of the weights.
        bounds: First vector of sixteen weights of the run, and the vector after its last one.
        distance: Distance to the weights to prefetch, in vectors of sixteen weights.
    """
    start, stop = bounds
    size = STRIP * TYPE_BYTES[weight_type]
    with function.loop(function.add(start, distance), function.add(stop, distance), CACHE_LINE_BYTES // size) as slot:
        function.prefetch(function.gep("%values", function.mul(slot, size)), level=2)
