"""A weight as its kernels read it, and the product with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels.blocks import PARAMETERS, BlockKernel
from secateur.runtime.kernels.layouts import Blocks
from secateur.runtime.kernels.threads import run_all, scratch
from secateur.runtime.kernels.turning import Panel

__all__ = ["ACTIVATIONS", "DTYPES", "PackedMatrix", "unsupported"]

DTYPES = ("float32",)
"""What weights can be stored as."""

ACTIVATIONS = ("float32", "bfloat16")
"""What activations can be; products are added in float32."""

BLOCK = re.compile(r"([1-9]\d*)x([1-9]\d*)")

ELEMENTS = {"float32": "float", "bfloat16": "bfloat"}

Activations = Literal["float32", "bfloat16"]


def unsupported(pattern: str, shape: tuple[int, int], dtype: str = "float32") -> str:
    """Why there is no kernel for a weight; empty if there is one.

    Args:
        pattern: Its pattern, such as ``"4x1"`` or ``"2:4"``.
        shape: (O, I) of the weight.
        dtype: What its numbers are to be stored as.

    Example:
        >>> unsupported("4x1", (8, 6)), unsupported("4x1", (6, 8))
        ('', "6 output channels are not a multiple of N=4 in '4x1'")
    """
    if sys.byteorder != "little":
        return "this processor stores the highest byte of a number first"
    if dtype not in DTYPES:
        return f"weights are stored as {' or '.join(DTYPES)}, not as {dtype}"
    found = BLOCK.fullmatch(pattern)
    if found is None:
        return f"there is no kernel for {pattern!r}"
    for size, step, letter, what in zip(shape, map(int, found.groups()), "NM", ("output", "input"), strict=True):
        if size % step:
            return f"{size} {what} channels are not a multiple of {letter}={step} in {pattern!r}"
    return "" if min(shape) > 0 else f"the weight is empty (shape {shape})"


class PackedMatrix:
    """A pruned (O, I) weight without its zeros, ready to be multiplied with.

    It holds arrays alone, so it can be copied, pickled and used from many threads at once; the code for it is made
    when it is first needed, and once in a process.

    Args:
        pattern: The pattern that it was pruned to.
        layout: Its numbers.

    Attributes:
        pattern: The same.
        layout: The same.

    Example:
        >>> weight = np.zeros((8, 6), np.float32)
        >>> weight[4:, 2] = 3
        >>> matrix = PackedMatrix.from_dense(weight, "4x1")
        >>> x, y = np.ones((2, 6), np.float32), np.empty((2, 8), np.float32)
        >>> matrix.matmul(x.ctypes.data, 2, y.ctypes.data)
        >>> y[1]
        array([0., 0., 0., 0., 3., 3., 3., 3.], dtype=float32)
    """

    def __init__(self, pattern: str, layout: Blocks) -> None:
        self.pattern = pattern
        self.layout = layout
        self._zeros = np.zeros(layout.shape[0], np.float32)

    @classmethod
    def from_dense(cls, weight_OI: npt.NDArray[np.float32], pattern: str, dtype: str = "float32") -> Self:
        """Leave out the zeros of a weight.

        Whatever is not zero is kept, so the product is right for a weight that does not keep to the pattern too.

        Args:
            weight_OI: The weight.
            pattern: Its pattern, such as ``"4x1"``.
            dtype: What its numbers are to be stored as, one of `DTYPES`.

        Raises:
            LayerError: There is no kernel for it; see `unsupported`.
        """
        if weight_OI.ndim != 2 or weight_OI.dtype != np.float32:
            raise LayerError(
                f"a weight must be a float32 array of shape (O, I), found {weight_OI.dtype} {weight_OI.shape}."
            )
        reason = unsupported(pattern, weight_OI.shape, dtype)
        if reason:
            raise LayerError(f"no kernel for a weight of {weight_OI.shape}: {reason}. Keep the layer dense.")
        rows, cols = (int(size) for size in pattern.split("x"))
        return cls(pattern, Blocks.of(weight_OI, (rows, cols)))

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.layout.shape

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.layout.nbytes

    def dense(self) -> npt.NDArray[np.float32]:
        """The weight with its zeros."""
        return self.layout.dense()

    def matmul(
        self, x: int, rows: int, y: int, *, bias: int | None = None, activations: str = "float32", threads: int = 1
    ) -> None:
        """Write ``x @ weight.T + bias`` to `y`; each number is the same for any number of threads.

        Nothing is known of the memory that addresses point to: the caller answers for it.

        Args:
            x: Address of the activations, of shape (rows, I), row after row without gaps.
            rows: Rows of the batch; may be 0.
            y: Address of the result, of shape (rows, O), row after row without gaps; of the activations' type.
            bias: Address of the bias, O numbers of float32.
            activations: Type of `x` and `y`, one of `ACTIVATIONS`.
            threads: How many to use at most, this one included.

        Raises:
            ConfigError: An argument is out of its range.
        """
        if activations not in ACTIVATIONS or rows < 0 or threads < 1:
            raise ConfigError(
                f"activations must be one of {ACTIVATIONS}, rows at least 0 and threads at least 1, "
                f"found {activations!r}, {rows} and {threads}."
            )
        element = ELEMENTS[activations]
        size = Panel(element, 1, 1).size
        start = 0
        for kernel, count in _kernels(self.layout.block, self.layout.columns.itemsize, element, rows):
            places = (x + start * self.shape[1] * size, y + start * self.shape[0] * size)
            self._run(kernel, count, (*places, bias or self._zeros.ctypes.data), threads)
            start += count

    def _run(self, kernel: BlockKernel, rows: int, places: tuple[int, int, int], threads: int) -> None:
        code, layout, (x, y, bias) = _code(kernel), self.layout, places
        outputs, inputs = self.shape
        arrays = [array.ctypes.data for array in (layout.starts, layout.columns, layout.values)]
        panel_bytes = inputs * kernel.panel.feature_bytes

        def work(begin: int, end: int) -> Callable[[], None]:
            return lambda: code(*arrays, bias, x, y, scratch(panel_bytes), rows, inputs, outputs, begin, end)

        panels = -(-rows // kernel.panel.width)
        run_all([work(*bounds) for bounds in _shares(layout.starts, panels, threads)])


def _kernels(block: tuple[int, int], index_bytes: int, element: str, rows: int) -> list[tuple[BlockKernel, int]]:
    """The kernels that a batch needs, one after another, and how many rows each is for."""
    from secateur.runtime.kernels.target import host

    lanes = host().lanes
    tile, vectors = _tile(block[0], host().registers)
    whole, rest = divmod(rows, lanes * vectors)
    sizes = [(vectors, whole * lanes * vectors)] * (whole > 0) + [(-(-rest // lanes), rest)] * (rest > 0)
    index = f"i{8 * index_bytes}"
    return [(BlockKernel(*block, index, Panel(element, lanes, some), tile), count) for some, count in sizes]


@cache
def _tile(rows: int, registers: int) -> tuple[int, int]:
    """Outputs and vectors of activations whose sums fit into the registers, beside what they are made of."""
    if registers < 32:
        return (min(rows, 4), 2)
    return (8, 3) if rows % 8 == 0 else (min(rows, 4), 4)


@cache
def _code(kernel: BlockKernel) -> Callable[..., None]:
    from secateur.runtime.kernels.target import compiled

    return compiled(kernel.emit(), "run", len(PARAMETERS))


def _shares(starts: npt.NDArray[Any], panels: int, threads: int) -> list[tuple[int, int]]:
    """Runs of rows of blocks, counted over all panels, with about as many blocks each."""
    rows = len(starts) - 1
    if threads == 1:
        return [(0, panels * rows)]
    costs = starts + np.arange(rows + 1)
    total = int(costs[-1])
    bounds = [0]
    for number in range(1, threads):
        panel, rest = divmod(total * panels * number // threads, total)
        bounds.append(panel * rows + int(np.searchsorted(costs, rest)))
    bounds.append(panels * rows)
    return [(begin, end) for begin, end in pairwise(bounds) if begin < end]
