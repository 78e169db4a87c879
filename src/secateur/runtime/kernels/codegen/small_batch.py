"""Base classes of small-batch kernels that gather activations, and operations for all small-batch kernels."""

from __future__ import annotations

from abc import abstractmethod

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import SmallBatchKernel, start_kernel
from secateur.runtime.kernels.codegen.vectors import (
    FLOAT_BYTES,
    FLOATS,
    PREFETCH_BYTES,
    TYPE_BYTES,
    load_floats,
    store_floats,
)
from secateur.runtime.kernels.formats.base import STRIP

__all__ = [
    "Float32ActivationKernel",
    "GatherKernel",
    "emit_float32_activations",
    "emit_scaled_results",
    "get_float_addresses",
]


class Float32ActivationKernel(SmallBatchKernel):
    """Base class of small-batch kernels that read activations as float32."""

    def get_scratch_bytes(self, inputs: int) -> int:
        """See `Kernel.get_scratch_bytes`. It contains the activations as floats, if they have another type."""
        return 0 if self.activation_type == "float" else inputs * self.batch * FLOAT_BYTES


class GatherKernel(Float32ActivationKernel):
    """Base class of kernels that gather the activations of sixteen weights at once. Their unit is a chunk of outputs.

    Attributes:
        chunk: Number of outputs in a chunk.
        piece: Number of features in a piece.
        activation_type: LLVM type of activations.
        batch: Number of batch rows.
        weight_type: LLVM type of the weights.
    """

    chunk: int
    piece: int
    weight_type: str

    @abstractmethod
    def emit_piece(self, function: Emitter, piece: str, features: str, sums: str) -> None:
        """Add the products of a piece of a chunk to the sums.

        Args:
            function: The function under construction.
            piece: Index of the piece over all chunks.
            features: Address of the activations of the piece.
            sums: Address of the sums of the chunk.
        """

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = start_kernel()
        floats = emit_float32_activations(function, self.activation_type, self.batch)
        sums = function.alloca(f"[{self.batch * self.chunk} x float]")
        pieces = function.int_op("sdiv", function.add("%inputs", self.piece - 1), self.piece)
        with function.loop("%begin", "%end") as chunk:
            with function.loop(0, self.batch * self.chunk, STRIP) as number:
                function.store(FLOATS, "zeroinitializer", function.gep(sums, function.mul(number, FLOAT_BYTES)), 64)
            with function.loop(0, pieces) as piece:
                features = function.gep(floats, function.mul(piece, self.piece * FLOAT_BYTES))
                self.emit_piece(function, function.add(function.mul(chunk, pieces), piece), features, sums)
            outputs = function.mul(chunk, self.chunk), self.chunk
            emit_scaled_results(function, sums, outputs, (self.activation_type, self.weight_type, self.batch))
        return function

    def emit_vector_product(self, function: Emitter, number: str, features: str, totals: list[str]) -> None:
        """Multiply a vector of sixteen weights, given by its index, by their activations."""
        first = function.mul(number, STRIP)
        address = function.gep("%values", function.mul(first, TYPE_BYTES[self.weight_type]))
        function.prefetch(function.gep(address, PREFETCH_BYTES), level=2)
        weights = load_floats(function, self.weight_type, STRIP, address)
        columns = function.load(vector("i8", STRIP), function.gep("%columns", first))
        for row, total in enumerate(totals):
            source = function.gep(features, function.mul("%inputs", row * FLOAT_BYTES))
            activations = function.gather(get_float_addresses(function, source, columns))
            function.accumulate(STRIP, weights, activations, total)


def emit_scaled_results(function: Emitter, sums: str, outputs: tuple[str, int], types: tuple[str, str, int]) -> None:
    """Apply scale and bias to sums, and write them to ``%y``.

    Args:
        function: The function under construction.
        sums: Address of the sums, row by row.
        outputs: First output, and maximum number of outputs, which is the length of a row.
        types: LLVM types of activations and weights, and the number of rows.
    """
    (first, count), (activation_type, weight_type, rows) = outputs, types
    left = function.smin(function.int_op("sub", "%outputs", first), count)
    for row in range(rows):
        with function.loop(0, left) as output:
            channel = function.add(first, output)
            offset = function.mul(channel, FLOAT_BYTES)
            sum_offset = function.mul(function.add(output, row * count), FLOAT_BYTES)
            total = load_floats(function, "float", 1, function.gep(sums, sum_offset))
            bias = load_floats(function, "float", 1, function.gep("%bias", offset))
            if weight_type == "i8":
                scale = load_floats(function, "float", 1, function.gep("%scales", offset))
                result = function.fma(1, total, scale, bias)
            else:
                result = function.assign(f"fadd <1 x float> {total}, {bias}")
            index = function.add(function.mul("%outputs", row), channel)
            target = function.mul(index, TYPE_BYTES[activation_type])
            store_floats(function, activation_type, 1, result, function.gep("%y", target))


def get_float_addresses(function: Emitter, base: str, indices: str, kind: str = "i8") -> str:
    """Return the addresses of sixteen floats from their indices, a vector of integers of type `kind`."""
    wide = function.assign(f"zext {vector(kind, STRIP)} {indices} to {vector('i64', STRIP)}")
    return function.assign(f"getelementptr float, ptr {base}, {vector('i64', STRIP)} {wide}")


def emit_float32_activations(function: Emitter, activation_type: str, rows: int) -> str:
    """Return the address of the activations as floats, which are converted to ``%scratch`` if they are bfloat16."""
    if activation_type == "float":
        return "%x"
    count = function.mul("%inputs", rows)
    with function.loop(0, count) as index:
        source = function.gep("%x", function.mul(index, TYPE_BYTES[activation_type]))
        value = load_floats(function, activation_type, 1, source)
        function.store("<1 x float>", value, function.gep("%scratch", function.mul(index, FLOAT_BYTES)), 4)
    return "%scratch"
