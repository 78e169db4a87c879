"""Multiply N:M weights by a small batch, selecting an activation of each group in a register."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.kernel import start_kernel
from secateur.runtime.kernels.codegen.small_batch import (
    Float32ActivationKernel,
    emit_float32_activations,
    emit_scaled_results,
    get_float_addresses,
)
from secateur.runtime.kernels.codegen.vectors import (
    FLOAT_BYTES,
    FLOATS,
    PREFETCH_BYTES,
    TYPE_BYTES,
    WORDS,
    load_floats,
)
from secateur.runtime.kernels.formats.base import STRIP
from secateur.runtime.kernels.formats.nm import get_position_bits

__all__ = ["NMSmallBatchKernel"]

ACCUMULATORS = 4
"""Number of independent sums of a strip. Fewer are used if the batch has several rows with independent sums."""


@dataclass(frozen=True, slots=True)
class NMSmallBatchKernel(Float32ActivationKernel):
    """Multiplies weights in `NMFormat` by a small batch. Its unit is a strip of sixteen outputs.

    Attributes:
        keep: N.
        group: M.
        activation_type: LLVM type of activations.
        batch: Number of batch rows.
        has_permute: Whether the processor permutes sixteen floats in one instruction (AVX-512). If not, activations are
            gathered.
        weight_type: LLVM type of the weights.
    """

    keep: int
    group: int
    activation_type: str
    batch: int
    has_permute: bool
    weight_type: str = "float"

    def get_cumulative_costs(self, starts: npt.NDArray[np.int64], inputs: int) -> npt.NDArray[np.int64]:  # noqa: ARG002
        """See `Kernel.get_cumulative_costs`. The cost is the number of vectors of sixteen weights."""
        return starts

    def emit(self) -> Emitter:
        """See `Kernel.emit`."""
        function = start_kernel()
        floats = emit_float32_activations(function, self.activation_type, self.batch)
        sums = function.alloca(f"[{self.batch * STRIP} x float]")
        groups = function.int_op("sdiv", "%inputs", self.group)
        accumulators = max(1, ACCUMULATORS // self.batch)
        unroll = max(1, accumulators // self.keep)
        middle = function.int_op("and", groups, -unroll)
        with function.loop("%begin", "%end") as strip:
            start = function.load("i64", function.gep("%starts", function.mul(strip, 8)))
            partial_sums = [
                [function.alloca(FLOATS, "zeroinitializer") for _ in range(self.batch)] for _ in range(accumulators)
            ]
            with function.loop(0, middle, unroll) as group:
                for number in range(unroll):
                    current = function.add(group, number)
                    first = number * self.keep % accumulators
                    self._emit_group(function, (start, current), floats, partial_sums[first:])
            with function.loop(middle, groups) as group:
                self._emit_group(function, (start, group), floats, partial_sums)
            for row in range(self.batch):
                parts = [function.load_variable(FLOATS, totals[row]) for totals in partial_sums]
                total = function.sum_vectors(parts, STRIP)
                function.store(FLOATS, total, function.gep(sums, row * STRIP * FLOAT_BYTES), 64)
            outputs = function.mul(strip, STRIP), STRIP
            emit_scaled_results(function, sums, outputs, (self.activation_type, self.weight_type, self.batch))
        return function

    def _emit_group(
        self, function: Emitter, location: tuple[str, str], floats: str, partial_sums: list[list[str]]
    ) -> None:
        """Multiply one group of each output of a strip.

        Args:
            function: The function under construction.
            location: Index of the first vector of sixteen weights of the strip, and index of the group.
            floats: Address of the activations as floats.
            partial_sums: Variables by accumulator, then by row.
        """
        start, group = location
        slot = function.add(start, function.mul(group, self.keep))
        feature = function.gep(floats, function.mul(group, self.group * FLOAT_BYTES))
        sources = [function.gep(feature, function.mul("%inputs", row * FLOAT_BYTES)) for row in range(self.batch)]
        for number in range(self.keep):
            vector_index = function.add(slot, number)
            address = function.gep("%values", function.mul(vector_index, STRIP * TYPE_BYTES[self.weight_type]))
            function.prefetch(function.gep(address, PREFETCH_BYTES), level=2)
            weights = load_floats(function, self.weight_type, STRIP, address)
            positions = self._load_positions(function, vector_index)
            for source, total in zip(sources, partial_sums[number % len(partial_sums)], strict=True):
                function.accumulate(STRIP, weights, self._select_activations(function, source, positions), total)

    def _load_positions(self, function: Emitter, slot: str) -> str:
        """Load the positions of sixteen weights, one per lane. The bits above each position are undefined."""
        bits = get_position_bits(self.group)
        count = bits * STRIP // 32
        words = function.load(vector("i32", count), function.gep("%columns", function.mul(slot, 4 * count)), 4)
        lanes = [lane * count // STRIP for lane in range(STRIP)]
        repeated = function.shuffle(vector("i32", count), words, "poison", lanes)
        shifts = ", ".join(f"i32 {bits * lane % 32}" for lane in range(STRIP))
        return function.assign(f"lshr {WORDS} {repeated}, <{shifts}>")

    def _select_activations(self, function: Emitter, source: str, positions: str) -> str:
        if not self.has_permute:
            mask = ", ".join([f"i32 {self.group - 1}"] * STRIP)
            indices = function.assign(f"and {WORDS} {positions}, <{mask}>")
            return function.gather(get_float_addresses(function, source, indices, "i32"))
        kind = vector("float", self.group)
        activations = function.load(kind, source, FLOAT_BYTES)
        repeated = function.shuffle(kind, activations, "poison", [lane % self.group for lane in range(STRIP)])
        name = "vpermilvar.ps.512" if self.group <= 4 else "permvar.sf.512"
        return function.call(FLOATS, f"llvm.x86.avx512.{name}", [(FLOATS, repeated), (WORDS, positions)])
