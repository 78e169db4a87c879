"""Pack pruned weights, and multiply with them."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from secateur._deprecated import warn_deprecated
from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels.codegen import target
from secateur.runtime.kernels.codegen.image_panel import ImagePanel
from secateur.runtime.kernels.codegen.kernel import Kernel
from secateur.runtime.kernels.codegen.vectors import TYPE_BYTES
from secateur.runtime.kernels.convolution import ConvolutionWindow, fit_panels
from secateur.runtime.kernels.dispatch import (
    compile_kernel,
    get_max_vectors,
    pack_weight,
    pack_weight_for_amx,
    select_convolution_kernel,
    select_kernels,
)
from secateur.runtime.kernels.formats.base import WeightFormat, copy_aligned
from secateur.runtime.kernels.formats.dtypes import WEIGHT_DTYPES, quantize_int8
from secateur.runtime.kernels.threading.executor import Product, build_product, get_executor
from secateur.runtime.kernels.threading.step import PlannedStep, create_job

__all__ = ["ACTIVATION_DTYPES", "PackedMatrix", "get_unsupported_reason"]

ACTIVATION_DTYPES = ("float32", "bfloat16")
"""Types of activations. Products are accumulated in float32."""

LLVM_ACTIVATION_TYPES = {"float32": "float", "bfloat16": "bfloat"}

NM_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")

BLOCK_PATTERN = re.compile(r"([1-9]\d*)x([1-9]\d*)")

BYTES_PER_SECOND = 20e9
"""Rough rate at which one thread reads weights."""

PRODUCTS_PER_SECOND = 75e9
"""Rough rate at which one thread multiplies."""

RENAMED_ATTRIBUTES = {
    "convolution": "compile_convolution",
    "dense": "to_dense",
    "layout": "weights",
    "product": "compile_product",
}
"""Maps deprecated attributes of `PackedMatrix` to their new names."""


def get_unsupported_reason(pattern: str, shape: tuple[int, int], dtype: str = "float32") -> str:
    """Return why no kernel supports a weight, or an empty string if one does.

    Args:
        pattern: Pattern of the weight, such as ``"4x1"`` or ``"2:4"``.
        shape: (O, I) of the weight.
        dtype: Storage type of the weight.

    Examples:
        >>> get_unsupported_reason("4x1", (8, 6)), get_unsupported_reason("4x1", (6, 8))
        ('', "6 output channels are not a multiple of N=4 in '4x1'")
    """
    if sys.byteorder != "little":
        return "this processor is big-endian"
    if dtype not in WEIGHT_DTYPES:
        return f"weights are stored as {' or '.join(WEIGHT_DTYPES)}, not as {dtype}"
    block, nm = BLOCK_PATTERN.fullmatch(pattern), NM_PATTERN.fullmatch(pattern)
    if block is None and nm is None:
        return f"there is no kernel for {pattern!r}"
    steps = tuple(int(size) for size in block.groups()) if block else (1, int(nm[2]) if nm else 1)
    for size, step, letter, axis in zip(shape, steps, "NM", ("output", "input"), strict=True):
        if size % step:
            return f"{size} {axis} channels are not a multiple of {letter}={step} in {pattern!r}"
    return "" if min(shape) > 0 else f"the weight is empty (shape {shape})"


class PackedMatrix:
    """A pruned (O, I) weight, stored without its zeros and ready to multiply.

    It contains only arrays, so it can be copied, pickled and used from many threads at once. Kernels are compiled on
    first use, once per process.

    Args:
        pattern: The pattern of the weight.
        weights: The packed weights.

    Attributes:
        pattern: The pattern of the weight.
        weights: The packed weights.

    Examples:
        >>> weight = np.zeros((8, 6), np.float32)
        >>> weight[4:, 2] = 3
        >>> matrix = PackedMatrix.from_dense(weight, "4x1")
        >>> bias, x = np.zeros(8, np.float32), np.ones((2, 6), np.float32)
        >>> y = np.empty((2, 8), np.float32)
        >>> matrix.compile_product(rows=2)(bias.ctypes.data, x.ctypes.data, y.ctypes.data)
        >>> y[1]
        array([0., 0., 0., 0., 3., 3., 3., 3.], dtype=float32)
    """

    def __init__(self, pattern: str, weights: WeightFormat) -> None:
        self.pattern = pattern
        self.weights = weights

    @classmethod
    def from_dense(
        cls, weight_OI: npt.NDArray[np.float32], pattern: str, dtype: str = "float32", rows: int = 1
    ) -> Self:
        """Pack a dense weight.

        All nonzero weights are stored, so products are correct even if the weight violates the pattern.

        Args:
            weight_OI: The weight.
            pattern: Pattern of the weight, such as ``"4x1"``.
            dtype: Storage type of the weights, one of `WEIGHT_DTYPES`.
            rows: Batch rows to optimize for; any batch can be multiplied.

        Raises:
            LayerError: No kernel supports the weight; see `get_unsupported_reason`.
        """
        if weight_OI.ndim != 2 or weight_OI.dtype != np.float32:
            raise LayerError(
                f"a weight must be a float32 array of shape (O, I), found {weight_OI.dtype} {weight_OI.shape}."
            )
        reason = get_unsupported_reason(pattern, weight_OI.shape, dtype)
        if reason:
            raise LayerError(f"no kernel for a weight of {weight_OI.shape}: {reason}. Keep the layer dense.")
        scales = np.empty(0, np.float32)
        if dtype == "int8":
            weight_OI, scales = quantize_int8(weight_OI)
        weights = pack_weight(weight_OI, pattern, rows)
        return cls(pattern, weights if dtype == "float32" else weights.to_dtype(dtype, scales))

    @classmethod
    def from_dense_for_amx(cls, weight_OI: npt.NDArray[np.float32], pattern: str, dtype: str = "bfloat16") -> Self:
        """Pack a dense weight for Intel AMX, which multiplies tiles of bfloat16.

        float32 weights and activations are each split into two bfloat16, with a relative error of a few millionths.

        Args:
            weight_OI: The weight, float32.
            pattern: Pattern of the weight.
            dtype: Type of the activations and storage type of the weights, ``"float32"`` or ``"bfloat16"``.

        Raises:
            LayerError: This processor has no AMX, or a weight cannot be split into two bfloat16.
        """
        if not target.has_amx():
            raise LayerError("this processor has no AMX. Keep the layer dense.")
        return cls(pattern, pack_weight_for_amx(weight_OI, dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (O, I) of the weight."""
        return self.weights.shape

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.weights.nbytes

    def to_dense(self) -> npt.NDArray[np.float32]:
        """Return the dense weight, which is rounded unless the storage type is float32."""
        scales, weight_OI = self.weights.scales, self.weights.to_dense()
        return weight_OI * scales[:, None] if scales.size else weight_OI

    def compile_product(self, rows: int, *, activations: str = "float32", threads: int = 1) -> Product:
        """Compile a function that computes ``y = x @ weight.T + bias``.

        Results are bitwise identical for any number of threads. The function takes the addresses of the bias (O
        float32), of x and of y. x and y are contiguous and row-major. The caller must make sure that the addresses are
        valid. The function can be called repeatedly and from many threads at once.

        Args:
            rows: Number of batch rows, which may be 0.
            activations: Type of x and y, one of `ACTIVATION_DTYPES`.
            threads: Maximum number of threads, including the calling thread.

        Raises:
            ConfigError: An argument is out of range, or the weight is packed for AMX and for another type of
                activations.
        """
        if activations not in ACTIVATION_DTYPES or rows < 0 or threads < 1:
            raise ConfigError(
                f"activations must be one of {ACTIVATION_DTYPES}, rows at least 0 and threads at least 1, "
                f"found {activations!r}, {rows} and {threads}."
            )
        steps, start, activation_type = [], 0, LLVM_ACTIVATION_TYPES[activations]
        outputs, inputs = self.shape
        for kernel, count in select_kernels(self.weights, activation_type, rows) if rows else []:
            first = start * TYPE_BYTES[activation_type]
            step = self._plan_step(kernel, -(-count // kernel.width), (count, threads))
            steps.append(step._replace(x=first * inputs, y=first * outputs))
            start += count
        return build_product(steps)

    def compile_convolution(self, images: int, window: ConvolutionWindow, *, threads: int = 1) -> Product:
        """Compile a function that convolves images.

        The weight is (O, K·I), ordered by kernel position, then by input channel. All values are float32. Results are
        bitwise identical for any number of threads. Like the function of `compile_product`, this one takes addresses:

        - x: the padded input, contiguous, of shape (images, I, s, s', H, W) for a stride of (s, s'): pixel (h, w) of
          phase (i, j) is pixel (h·s + i, w·s' + j) of the input. See `ConvolutionWindow.phase_size`. The
          `OVERREAD_FLOATS` floats after it are read and ignored.
        - y: the output, contiguous, of shape (images, O, H', W'). See `ConvolutionWindow.height`.

        Args:
            images: Number of images.
            window: The window of the convolution.
            threads: Maximum number of threads, including the calling thread.

        Raises:
            ConfigError: An argument is out of range, or the weight is packed for AMX.
        """
        if images < 0 or threads < 1 or window.channels * window.kernel[0] * window.kernel[1] != self.shape[1]:
            raise ConfigError(
                f"images must be at least 0, threads at least 1 and the window have {self.shape[1]} features, found "
                f"{images}, {threads} and {window}."
            )
        lanes, pixels = target.get_host().lanes, window.height * window.width
        if not images or pixels <= 0:
            return build_product([])
        grid, offsets = fit_panels(window, lanes, get_max_vectors(self.weights)), copy_aligned(window.offsets)
        geometry = (
            offsets.ctypes.data,
            grid.panels,
            grid.segments,
            grid.lines,
            grid.span,
            window.phase_size[1],
            window.height,
            window.width,
            window.image_floats,
        )
        kernel = select_convolution_kernel(self.weights, ImagePanel(lanes, grid.vectors))
        step = self._plan_step(kernel, images * grid.panels, (images * pixels, threads), geometry)
        return build_product([step._replace(owners=(step.owners, offsets))])

    def _plan_step(
        self, kernel: Kernel, panels: int, sizes: tuple[int, int], geometry: tuple[int, ...] = ()
    ) -> PlannedStep:
        """Compile a kernel and split its work into shares.

        Args:
            kernel: The kernel.
            panels: Number of panels, each of which reads all weights.
            sizes: Number of batch rows, and maximum number of threads.
            geometry: Further values of the plan. See `codegen.image_panel.GEOMETRY`.
        """
        (outputs, inputs), (rows, threads) = self.shape, sizes
        addresses = [array.ctypes.data for array in self.weights.arrays]
        useful_threads = self._count_useful_threads(rows, threads)
        count = useful_threads * kernel.shares_per_thread if useful_threads > 1 else 1
        bounds = split_work(kernel.get_cumulative_costs(self.weights.starts, inputs), panels, count)
        plans = [np.array([*addresses, rows, inputs, outputs, *share, *geometry], np.int64) for share in bounds]
        function: Any = compile_kernel(kernel)
        plan_addresses = tuple(plan.ctypes.data for plan in plans)
        table, scratch_bytes = np.array(plan_addresses, np.int64), kernel.get_scratch_bytes(inputs)
        return PlannedStep(
            function=function,
            plans=plan_addresses,
            x=0,
            y=0,
            scratch_bytes=scratch_bytes,
            useful_threads=useful_threads,
            threads=threads,
            job=create_job(function, table, scratch_bytes),
            owners=(self.weights, plans, table),
        )

    def _count_useful_threads(self, rows: int, threads: int) -> int:
        values = self.weights.values
        seconds = values.nbytes / BYTES_PER_SECOND + values.size * rows / PRODUCTS_PER_SECOND
        return get_executor().count_useful_threads(seconds, threads)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in RENAMED_ATTRIBUTES:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warn_deprecated(f"PackedMatrix.{name}", f"PackedMatrix.{RENAMED_ATTRIBUTES[name]}")
            return getattr(self, RENAMED_ATTRIBUTES[name])

        @classmethod
        def in_tiles(cls, weight_OI: npt.NDArray[np.float32], pattern: str, dtype: str = "bfloat16") -> Self:
            """Deprecated alias of `from_dense_for_amx`."""
            warn_deprecated("PackedMatrix.in_tiles", "PackedMatrix.from_dense_for_amx")
            return cls.from_dense_for_amx(weight_OI, pattern, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return restore_matrix, (type(self), self.pattern, self.weights)


def restore_matrix(kind: type[PackedMatrix], pattern: str, weights: WeightFormat) -> PackedMatrix:
    """Rebuild a copied or unpickled matrix, and align its arrays with cache lines again."""
    columns, values = copy_aligned(weights.columns), copy_aligned(weights.values)
    return kind(pattern, replace(weights, columns=columns, values=values))


def split_work(cumulative_costs: npt.NDArray[Any], panels: int, count: int) -> list[tuple[int, int]]:
    """Split the units of all panels into consecutive shares of about the same cost.

    Args:
        cumulative_costs: For each unit of a panel, the cost of all units before it, and the total cost at the end.
        panels: Number of panels.
        count: Maximum number of shares.

    Returns:
        For each share, its first unit and the unit after its last one, numbered over all panels.

    Examples:
        >>> split_work(np.array([0, 5, 6, 7, 8, 9, 10]), 1, 2)
        [(0, 1), (1, 6)]
    """
    units, total = len(cumulative_costs) - 1, int(cumulative_costs[-1])
    bounds = [0]
    for number in range(1, count):
        panel, rest = divmod(total * panels * number // count, total) if total else (panels, 0)
        bounds.append(panel * units + int(np.searchsorted(cumulative_costs, rest)))
    bounds.append(panels * units)
    return [(begin, end) for begin, end in pairwise(bounds) if begin < end]
