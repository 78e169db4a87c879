"""Define panels, through which kernels for large batches and images read activations and write results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, broadcast_float

__all__ = ["ActivationPanel", "PanelAccess"]


class ActivationPanel(ABC):
    """Batch rows, or pixels, that a kernel processes together: one or more vectors per feature.

    Attributes:
        lanes: Number of rows in a vector.
        vectors: Number of vectors per feature.
    """

    lanes: int
    vectors: int

    @property
    def width(self) -> int:
        """Number of rows in the panel."""
        return self.lanes * self.vectors

    @property
    def feature_bytes(self) -> int:
        """Size of one feature or output as floats, in bytes."""
        return self.width * FLOAT_BYTES

    @abstractmethod
    def get_scratch_bytes(self, inputs: int) -> int:
        """Return the size of the panel's scratch memory, in bytes, for a weight with this number of inputs."""

    @abstractmethod
    def create_access(self, function: Emitter, outputs: int, weight_type: str) -> PanelAccess:
        """Create the object that emits loads and stores of this panel.

        Args:
            function: The function under construction.
            outputs: Maximum number of outputs that are written together.
            weight_type: LLVM type of the weights. For int8, the scale and the bias are applied to the results.
        """


class PanelAccess(ABC):
    """Emits loads of a panel's activations and stores of its results. See `ActivationPanel.create_access`."""

    def __init__(self, function: Emitter, panel: ActivationPanel, outputs: int, weight_type: str) -> None:
        self.function, self.outputs = function, outputs
        self.lanes, self.vectors, self.feature_bytes = panel.lanes, panel.vectors, panel.feature_bytes
        self.kind, self.vector_bytes = vector("float", panel.lanes), panel.lanes * FLOAT_BYTES
        self._has_scales = weight_type == "i8"

    @abstractmethod
    def emit_panel_loop(self, units: str) -> AbstractContextManager[tuple[str, str]]:
        """Emit the body for each panel from ``%begin`` to ``%end``, and yield the range of its units."""

    @abstractmethod
    def get_base(self, feature: str) -> str:
        """Return the base address for `get_address`, which counts features from this one."""

    @abstractmethod
    def get_address(self, base: str, number: str) -> str:
        """Return the address of the activations of a feature, counted from a base."""

    @abstractmethod
    def load_activations(self, address: str) -> list[str]:
        """Load the activations of a feature, vector by vector."""

    @property
    @abstractmethod
    def free_scratch(self) -> str:
        """Address of the scratch memory that the panel does not use."""

    @abstractmethod
    def emit_result_prefetch(self, first: str, count: str) -> None:
        """Prefetch the memory of results before they are stored."""

    @abstractmethod
    def emit_results(self, memory: str, first: str, count: str) -> None:
        """Write results to ``%y``.

        Args:
            memory: Address of the sums, output by output.
            first: First output.
            count: Number of outputs.
        """

    def store_sums(self, memory: str, sums: Sequence[Sequence[str]], slot: str) -> None:
        """Store variables by output, then by vector, as the sums of the outputs from `slot` on."""
        function = self.function
        first = function.gep(memory, function.mul(slot, self.feature_bytes))
        for output, totals in enumerate(sums):
            for number, total in enumerate(totals):
                address = function.gep(first, output * self.feature_bytes + number * self.vector_bytes)
                function.store(self.kind, function.load_variable(self.kind, total), address, self.vector_bytes)

    def load_result(self, address: str, channel: str, align: int) -> str:
        """Load a vector of sums of an output, and apply the scale and the bias for int8."""
        function = self.function
        total = function.load(self.kind, address, align)
        if not self._has_scales:
            return total
        last = function.smin(channel, function.int_op("sub", "%outputs", 1))
        scale, bias = (broadcast_float(function, f"%{name}", last, self.lanes) for name in ("scales", "bias"))
        return function.fma(self.lanes, total, scale, bias)
