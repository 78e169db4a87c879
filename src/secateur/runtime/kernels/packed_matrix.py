"""A weight as its kernels read it, and the product with it."""

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
from secateur.runtime.kernels.codegen.vectors import SIZES
from secateur.runtime.kernels.convolution import ConvolutionWindow, fitted
from secateur.runtime.kernels.dispatch import (
    code,
    get_max_vectors,
    packed,
    packed_for_amx,
    select_convolution_kernel,
    select_kernels,
)
from secateur.runtime.kernels.formats.base import Layout, aligned
from secateur.runtime.kernels.formats.dtypes import WEIGHT_DTYPES, quantized
from secateur.runtime.kernels.threading.executor import Product, product_of, workforce
from secateur.runtime.kernels.threading.step import PlannedStep, job_of

__all__ = ["ACTIVATION_DTYPES", "PackedMatrix", "get_unsupported_reason"]

ACTIVATION_DTYPES = ("float32", "bfloat16")
"""What activations can be; products are added in float32."""

GROUP = re.compile(r"([1-9]\d*):([1-9]\d*)")

BLOCK = re.compile(r"([1-9]\d*)x([1-9]\d*)")

BYTES_PER_SECOND = 20e9
"""Of weights that one thread reads, about."""

PRODUCTS_PER_SECOND = 75e9
"""Of one thread, about."""

OLD_NAMES = {
    "convolution": "compile_convolution",
    "dense": "to_dense",
    "layout": "weights",
    "product": "compile_product",
}
"""Attributes that have been renamed, which still work and warn."""

ELEMENTS = {"float32": "float", "bfloat16": "bfloat"}


def get_unsupported_reason(pattern: str, shape: tuple[int, int], dtype: str = "float32") -> str:
    """Why there is no kernel for a weight; empty if there is one.

    Args:
        pattern: Its pattern, such as ``"4x1"`` or ``"2:4"``.
        shape: (O, I) of the weight.
        dtype: What its numbers are to be stored as.

    Example:
        >>> get_unsupported_reason("4x1", (8, 6)), get_unsupported_reason("4x1", (6, 8))
        ('', "6 output channels are not a multiple of N=4 in '4x1'")
    """
    if sys.byteorder != "little":
        return "this processor stores the highest byte of a number first"
    if dtype not in WEIGHT_DTYPES:
        return f"weights are stored as {' or '.join(WEIGHT_DTYPES)}, not as {dtype}"
    block, grouped = BLOCK.fullmatch(pattern), GROUP.fullmatch(pattern)
    if block is None and grouped is None:
        return f"there is no kernel for {pattern!r}"
    steps = tuple(int(size) for size in block.groups()) if block else (1, int(grouped[2]) if grouped else 1)
    for size, step, letter, what in zip(shape, steps, "NM", ("output", "input"), strict=True):
        if size % step:
            return f"{size} {what} channels are not a multiple of {letter}={step} in {pattern!r}"
    return "" if min(shape) > 0 else f"the weight is empty (shape {shape})"


class PackedMatrix:
    """A pruned (O, I) weight without its zeros, ready to be multiplied with.

    It holds arrays alone, so it can be copied, pickled and used from many threads at once; the code for it is made
    when it is first needed, and once in a process.

    Args:
        pattern: The pattern that it was pruned to.
        weights: Its numbers, in one of the formats.

    Attributes:
        pattern: The same.
        weights: The same.

    Example:
        >>> weight = np.zeros((8, 6), np.float32)
        >>> weight[4:, 2] = 3
        >>> matrix = PackedMatrix.from_dense(weight, "4x1")
        >>> bias, x, y = np.zeros(8, np.float32), np.ones((2, 6), np.float32), np.empty((2, 8), np.float32)
        >>> matrix.compile_product(rows=2)(bias.ctypes.data, x.ctypes.data, y.ctypes.data)
        >>> y[1]
        array([0., 0., 0., 0., 3., 3., 3., 3.], dtype=float32)
    """

    def __init__(self, pattern: str, weights: Layout) -> None:
        self.pattern = pattern
        self.weights = weights

    @classmethod
    def from_dense(
        cls, weight_OI: npt.NDArray[np.float32], pattern: str, dtype: str = "float32", rows: int = 1
    ) -> Self:
        """Leave out the zeros of a weight.

        Whatever is not zero is kept, so the product is right for a weight that does not keep to the pattern too.

        Args:
            weight_OI: The weight.
            pattern: Its pattern, such as ``"4x1"``.
            dtype: What its numbers are to be stored as, one of `WEIGHT_DTYPES`.
            rows: Rows of the batch that it is to be fast for; it can be multiplied with any.

        Raises:
            LayerError: There is no kernel for it; see `get_unsupported_reason`.
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
            weight_OI, scales = quantized(weight_OI)
        layout = packed(weight_OI, pattern, rows)
        return cls(pattern, layout if dtype == "float32" else layout.as_dtype(dtype, scales))

    @classmethod
    def from_dense_for_amx(cls, weight_OI: npt.NDArray[np.float32], pattern: str, dtype: str = "bfloat16") -> Self:
        """Multiply with tiles of bfloat16, for sixteen outputs at a time, as some processors can (Intel's AMX).

        Inputs that none of sixteen outputs reads are left out, if there are enough of them. Of float32, weights and
        activations are each parted into two bfloat16: results differ by some millionths.

        Args:
            weight_OI: The weight, float32.
            pattern: Its pattern.
            dtype: Type of the activations, and what its numbers are stored as: ``"float32"`` or ``"bfloat16"``.

        Raises:
            LayerError: This processor has no tiles, or a weight cannot be parted; see `numbers.in_halves`.
        """
        if not target.has_amx():
            raise LayerError("this processor multiplies no tiles of bfloat16 (AMX). Keep the layer dense.")
        return cls(pattern, packed_for_amx(weight_OI, dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.weights.shape

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.weights.nbytes

    def to_dense(self) -> npt.NDArray[np.float32]:
        """The weight with its zeros, as it is stored: rounded, if that is not float32."""
        scales, weight_OI = self.weights.scales, self.weights.to_dense()
        return weight_OI * scales[:, None] if scales.size else weight_OI

    def compile_product(self, rows: int, *, activations: str = "float32", threads: int = 1) -> Product:
        """What writes ``x @ weight.T + bias`` for x of a number of rows; each number is the same for any threads.

        Nothing is known of the memory that addresses point to: the caller answers for it. The product takes those of
        the bias, O numbers of float32, of x and of the result, both row after row without gaps. It may be called often,
        and from many threads at once.

        Args:
            rows: Rows of the batch; may be 0.
            activations: Type of x and the result, one of `ACTIVATION_DTYPES`.
            threads: How many to use at most, the caller's included.

        Raises:
            ConfigError: An argument is out of its range, or the weight is in tiles for activations of the other type.
        """
        if activations not in ACTIVATION_DTYPES or rows < 0 or threads < 1:
            raise ConfigError(
                f"activations must be one of {ACTIVATION_DTYPES}, rows at least 0 and threads at least 1, "
                f"found {activations!r}, {rows} and {threads}."
            )
        steps, start, element = [], 0, ELEMENTS[activations]
        outputs, inputs = self.shape
        for kernel, count in select_kernels(self.weights, element, rows) if rows else []:
            first = start * SIZES[element]
            step = self._step(kernel, -(-count // kernel.width), (count, threads))
            steps.append(step._replace(x=first * inputs, y=first * outputs))
            start += count
        return product_of(steps)

    def compile_convolution(self, images: int, window: ConvolutionWindow, *, threads: int = 1) -> Product:
        """What writes the convolution of images; each number is the same for any number of threads.

        The weight is (O, K·I), kernel positions first and input channels fastest, and all numbers are float32. The
        product takes addresses as that of `compile_product` does:

        - x: the padded input, of shape (images, I, s, s', H, W) without gaps: for a stride of (s, s'), pixel (h, w) of
          the part (i, j) is pixel (h·s + i, w·s' + j) of the input; see `ConvolutionWindow.part`. `OVERREAD_FLOATS`
          floats behind it are read and not used.
        - the result, of shape (images, O, H', W') without gaps; see `ConvolutionWindow.height`.

        Args:
            images: How many.
            window: What the convolution sees of an image.
            threads: How many to use at most, the caller's included.

        Raises:
            ConfigError: An argument is out of its range.
        """
        if images < 0 or threads < 1 or window.channels * window.kernel[0] * window.kernel[1] != self.shape[1]:
            raise ConfigError(
                f"images must be at least 0, threads at least 1 and the window have {self.shape[1]} features, found "
                f"{images}, {threads} and {window}."
            )
        lanes, pixels = target.host().lanes, window.height * window.across
        if not images or pixels <= 0:
            return product_of([])
        fit, offsets = fitted(window, lanes, get_max_vectors(self.weights)), aligned(window.offsets)
        sizes = (
            fit.panels,
            fit.segments,
            fit.lines,
            fit.span,
            window.part[1],
            window.height,
            window.across,
            window.image,
        )
        kernel = select_convolution_kernel(self.weights, ImagePanel(lanes, fit.vectors))
        step = self._step(kernel, images * fit.panels, (images * pixels, threads), (offsets.ctypes.data, *sizes))
        return product_of([step._replace(held=(step.held, offsets))])

    def _step(
        self, kernel: Kernel, panels: int, product: tuple[int, int], geometry: tuple[int, ...] = ()
    ) -> PlannedStep:
        """A kernel with its share for each thread.

        Args:
            kernel: The kernel.
            panels: How often all of the weight is to be gone through.
            product: Rows of the batch, and threads at most.
            geometry: What follows in the plan.
        """
        (outputs, inputs), (rows, threads) = self.shape, product
        addresses = [array.ctypes.data for array in self.weights.arrays]
        useful = self._useful(rows, threads)
        pieces = useful * kernel.shares_per_thread if useful > 1 else 1
        bounds = shares(kernel.costs(self.weights.starts, inputs), panels, pieces)
        held = [np.array([*addresses, rows, inputs, outputs, *some, *geometry], np.int64) for some in bounds]
        function: Any = code(kernel)
        plans: tuple[int, ...] = tuple(plan.ctypes.data for plan in held)
        table, memory = np.array(plans, np.int64), kernel.scratch_bytes(inputs)
        job = job_of(function, table, memory)
        return PlannedStep(function, plans, 0, 0, memory, useful, threads, job, (self.weights, held, table))

    def _useful(self, rows: int, threads: int) -> int:
        """How many threads are worth their waking up."""
        values = self.weights.values
        seconds = values.nbytes / BYTES_PER_SECOND + values.size * rows / PRODUCTS_PER_SECOND
        return workforce().useful(seconds, threads)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in OLD_NAMES:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warn_deprecated(f"PackedMatrix.{name}", f"PackedMatrix.{OLD_NAMES[name]}")
            return getattr(self, OLD_NAMES[name])

        @classmethod
        def in_tiles(cls, weight_OI: npt.NDArray[np.float32], pattern: str, dtype: str = "bfloat16") -> Self:
            """Old name of `from_dense_for_amx`."""
            warn_deprecated("PackedMatrix.in_tiles", "PackedMatrix.from_dense_for_amx")
            return cls.from_dense_for_amx(weight_OI, pattern, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), self.pattern, self.weights)


def restored(kind: type[PackedMatrix], pattern: str, layout: Layout) -> PackedMatrix:
    """A matrix from its copied parts, whose arrays begin with a cache line again."""
    return kind(pattern, replace(layout, columns=aligned(layout.columns), values=aligned(layout.values)))


def shares(costs: npt.NDArray[Any], panels: int, count: int) -> list[tuple[int, int]]:
    """Runs of units, counted over all panels, that cost about the same.

    Args:
        costs: What the units before each cost, and at the end all of them.
        panels: How often all of them are to be done.
        count: Runs at most.

    Example:
        >>> shares(np.array([0, 5, 6, 7, 8, 9, 10]), 1, 2)
        [(0, 1), (1, 6)]
    """
    units, total = len(costs) - 1, int(costs[-1])
    bounds = [0]
    for number in range(1, count):
        panel, rest = divmod(total * panels * number // count, total) if total else (panels, 0)
        bounds.append(panel * units + int(np.searchsorted(costs, rest)))
    bounds.append(panels * units)
    return [(begin, end) for begin, end in pairwise(bounds) if begin < end]
