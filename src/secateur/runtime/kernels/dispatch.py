"""Which kernels a batch is multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels.amx.bitmask_small_batch import ExpandingKernel
from secateur.runtime.kernels.amx.bitmask_tiles import TILE_PAIR, DecodingKernel
from secateur.runtime.kernels.amx.column_tiles import BrainTileKernel, HalfTileKernel
from secateur.runtime.kernels.block.panel import BlockKernel
from secateur.runtime.kernels.block.small_batch import DirectKernel
from secateur.runtime.kernels.codegen import target
from secateur.runtime.kernels.codegen.kernel import PARAMETERS, Kernel
from secateur.runtime.kernels.codegen.panel import Panel
from secateur.runtime.kernels.codegen.row_panel import RowPanel
from secateur.runtime.kernels.codegen.transpose import QUAD
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, SIZES
from secateur.runtime.kernels.formats.base import STRIP, Layout, TileLayout
from secateur.runtime.kernels.formats.bitmask import MASKED_CHUNK, MASKED_PART, Masked
from secateur.runtime.kernels.formats.block import Blocks
from secateur.runtime.kernels.formats.column_tiles import TILE_INPUTS, Tiled
from secateur.runtime.kernels.formats.dtypes import NAMES
from secateur.runtime.kernels.formats.nm import Grouped
from secateur.runtime.kernels.formats.output_pairs import PIECE_OF_PAIRED, Paired
from secateur.runtime.kernels.formats.unstructured import PIECE_OF_SCATTERED, Scattered
from secateur.runtime.kernels.nm.output_pairs import PairGatherKernel, PairKernel
from secateur.runtime.kernels.nm.panel import SelectPanelKernel
from secateur.runtime.kernels.nm.small_batch import SelectKernel
from secateur.runtime.kernels.unstructured.panel import ScatteredKernel
from secateur.runtime.kernels.unstructured.small_batch import GatherKernel

__all__ = [
    "MAX_ROWS_WITHOUT_AMX",
    "MOST_SELECTED",
    "Step",
    "code",
    "get_max_vectors",
    "packed",
    "packed_for_amx",
    "select_convolution_kernel",
    "select_kernels",
]

HIGH_VECTORS = 3
"""Vectors beside which the sums of eight outputs fit into 32 registers."""

MOST_OF_FIVE = 3072
"""Inputs up to which a panel of five vectors takes less than a mebibyte."""

PANEL_BYTES = 3 << 18
"""Of a panel at most, where it may be wide."""

MOST_SELECTED = 16
"""Rows of the batch up to which selecting activations in registers is faster than packing them."""

SELECTED = 128, 128
"""Outputs of a chunk and features of a piece, for N of every M weights."""

DECODED_ROWS, DECODED_PIECE, DECODED_BYTES = 256, 1024, 1 << 20
"""Rows of a panel at most, features of a piece of float32, and bytes of a panel, for weights that are decoded."""

MAX_ROWS_WITHOUT_AMX = 8
"""Rows of the batch up to which masked weights are multiplied by vectors."""

MOST_GATHERED = 2
"""Rows of the batch up to which gathering is faster than packing: measured equal at 2 to 3, half as fast at 4."""


MOST_OUTPUTS = 64
"""Of a block; higher ones are cut, for a kernel keeps the results of a row of blocks on the stack."""

LEAST_PAIRED = 0.4
"""Share of weights kept from which pairs of outputs have many inputs in common: 2:4 gains 1.2 times, 1:4 1.07."""

MOST_UNITED = 0.4
"""Share of weights in tiles up to which activations are put together for them, rather than all weights decoded."""


class Step(NamedTuple):
    """A kernel and how many rows of the batch it is for."""

    kernel: Kernel
    rows: int


def code(kernel: Kernel) -> Callable[..., None]:
    """The kernel's function, made once in a process.

    Raises:
        MissingPackageError: llvmlite is not installed.
    """
    made = _made.get(kernel)
    if made is None:
        made = _made.setdefault(kernel, target.compiled(kernel.emit(), "run", len(PARAMETERS)))
    return made


_made: dict[Kernel, Callable[..., None]] = {}


def packed(weight_OI: npt.NDArray[np.float32], pattern: str, rows: int) -> Layout:
    """A weight in the layout for its pattern; one of which more than N of M are not zero, in that for any."""
    if ":" in pattern:
        keep, group = (int(size) for size in pattern.split(":"))
        if not Grouped.fits(weight_OI, keep, group):
            return Scattered.of(weight_OI)
        is_paired = rows > MOST_SELECTED and keep >= LEAST_PAIRED * group
        return Paired.of(weight_OI) if is_paired else Grouped.of(weight_OI, keep, group)
    height, width = (int(size) for size in pattern.split("x"))
    height = max(size for size in range(1, min(height, MOST_OUTPUTS) + 1) if height % size == 0)
    return Scattered.of(weight_OI) if height == width == 1 else Blocks.of(weight_OI, (height, width))


def packed_for_amx(weight_OI: npt.NDArray[np.float32], dtype: str) -> Layout:
    """A weight in the layout for tiles; `dtype`: float32 or bfloat16."""
    tiled = Tiled.of(weight_OI, TILE_INPUTS if dtype == "bfloat16" else TILE_INPUTS // 2)
    if tiled.values.size > MOST_UNITED * weight_OI.size:
        return Masked.of(weight_OI, dtype)
    return tiled.as_dtype(dtype, np.empty(0, np.float32)) if dtype == "bfloat16" else tiled.in_halves()


def select_kernels(weights: Layout, element: str, rows: int) -> list[Step]:
    """The kernels for a batch, one after another; `element`: LLVM's type of activations.

    Raises:
        ConfigError: Activations are not of the type that weights for AMX need.
        LayerError: This processor has no AMX, and the weights need it.
    """
    inputs, types = weights.shape[1], (element, weights.stored)
    if isinstance(weights, TileLayout):
        _refuse_others(weights, element)
    match weights:
        case Blocks():
            return block_steps(weights.block, inputs, (weights.index, *types), rows)
        case Scattered():
            return scattered_steps((weights.chunk, PIECE_OF_SCATTERED), types, rows)
        case Grouped():
            return grouped_steps((weights.keep, weights.group), types, rows)
        case Paired():
            return paired_steps((weights.chunk, PIECE_OF_PAIRED), types, inputs, rows)
        case Masked():
            return masked_steps((MASKED_CHUNK, MASKED_PART), inputs, element, rows)
        case Tiled():
            if not target.has_amx():
                raise LayerError(
                    "the weight was packed for a processor with AMX, and this is none. Compile the model here."
                )
            return tile_steps(weights.index, element, rows)
    raise TypeError(f"no kernel reads {type(weights).__name__}")


def select_convolution_kernel(weights: Layout, panel: Panel) -> Kernel:
    """The kernel for panels of images.

    Raises:
        ConfigError: The weights are for AMX, which multiplies no images.
    """
    match weights:
        case Blocks():
            return block_kernel(weights.block, (weights.index, weights.stored), panel)
        case Scattered():
            return scattered_kernel((weights.chunk, PIECE_OF_SCATTERED), weights.stored, panel)
        case Grouped():
            return grouped_kernel((weights.keep, weights.group), weights.stored, panel)
        case Paired():
            return PairKernel(weights.chunk, PIECE_OF_PAIRED, panel, weights.stored)
    raise ConfigError(f"a weight for tiles is multiplied with rows, found {panel}.")


def get_max_vectors(weights: Layout) -> int:
    """Vectors of a panel at most."""
    match weights:
        case Blocks():
            return 5 if most_vectors(4) == 4 else 2
        case Paired():
            return most_vectors(8)
        case TileLayout():
            return 4
    return most_vectors(4)


def _refuse_others(weights: TileLayout, element: str) -> None:
    """Refuse activations of another type than the weights'."""
    if element != weights.element:
        own, found = NAMES[weights.element], NAMES[element]
        raise ConfigError(f"a weight for tiles of {own} needs activations of it, found {found}.")


@lru_cache(maxsize=1024)
def block_steps(block: tuple[int, int], inputs: int, types: tuple[str, str, str], rows: int) -> list[Step]:
    """The kernels for blocks, one after another.

    Args:
        block: Outputs and inputs of a block.
        inputs: Of the weight.
        types: LLVM's types of a block's number, the activations and the weights.
        rows: Of the batch.
    """
    index, element, stored = types
    host = target.host()
    if rows <= most_direct(*block):
        return [Step(DirectKernel(*block, index, element, rows, host.lanes, stored), rows)]
    vectors = _block_vectors(block[0], inputs, host.registers)
    panels = panel_steps(element, rows, host.lanes, vectors)
    return [Step(block_kernel(block, (index, stored), panel), count) for panel, count in panels]


@lru_cache(maxsize=1024)
def scattered_steps(sizes: tuple[int, int], types: tuple[str, str], rows: int) -> list[Step]:
    """The kernels for single weights, one after another.

    Args:
        sizes: Outputs of a chunk and inputs of a piece.
        types: LLVM's types of the activations and the weights.
        rows: Of the batch.
    """
    (element, stored), host = types, target.host()
    if rows <= MOST_GATHERED:
        return [Step(GatherKernel(*sizes, element, rows, stored), rows)]
    panels = panel_steps(element, rows, host.lanes, most_vectors(4))
    return [Step(scattered_kernel(sizes, stored, panel), count) for panel, count in panels]


@lru_cache(maxsize=1024)
def grouped_steps(pattern: tuple[int, int], types: tuple[str, str], rows: int) -> list[Step]:
    """The kernels for N of every M weights, one after another.

    Args:
        pattern: N and M.
        types: LLVM's types of the activations and the weights.
        rows: Of the batch.
    """
    (element, stored), host = types, target.host()
    if rows <= MOST_SELECTED:
        permutes = host.is_x86 and host.lanes == STRIP
        return [Step(SelectKernel(*pattern, element, rows, permutes, stored), rows)]
    panels = panel_steps(element, rows, host.lanes, most_vectors(4))
    return [Step(grouped_kernel(pattern, stored, panel), count) for panel, count in panels]


@lru_cache(maxsize=1024)
def paired_steps(sizes: tuple[int, int], types: tuple[str, str], inputs: int, rows: int) -> list[Step]:
    """The kernels for pairs of outputs, one after another.

    Args:
        sizes: Outputs of a chunk and inputs of a piece.
        types: LLVM's types of the activations and the weights.
        inputs: Of the weight.
        rows: Of the batch.
    """
    (element, stored), host = types, target.host()
    if rows <= MOST_GATHERED:
        return [Step(PairGatherKernel(*sizes, element, rows, stored), rows)]
    roomy = max(4, PANEL_BYTES // (inputs * host.lanes * FLOAT_BYTES))
    panels = panel_steps(element, rows, host.lanes, min(roomy, most_vectors(8)))
    return [Step(PairKernel(*sizes, panel, stored), count) for panel, count in panels]


@lru_cache(maxsize=1024)
def tile_steps(index: str, element: str, rows: int) -> list[Step]:
    """The kernels for tiles, one after another; `index`, `element`: LLVM's types of a column and of activations."""
    vectors = 4 if rows > 2 * STRIP else 2
    if element == "bfloat":
        return [Step(BrainTileKernel(index, RowPanel(element, STRIP, vectors, packed=element)), rows)]
    return [Step(HalfTileKernel(index, RowPanel(element, STRIP, vectors, packed="halves")), rows)]


@lru_cache(maxsize=1024)
def masked_steps(sizes: tuple[int, int], inputs: int, element: str, rows: int) -> list[Step]:
    """The kernels for masked weights, one after another.

    Args:
        sizes: Outputs and inputs that lie together.
        inputs: Of the weight.
        element: LLVM's type of the activations and the weights.
        rows: Of the batch.
    """
    if target.has_amx() and rows > MAX_ROWS_WITHOUT_AMX:
        piece = DECODED_PIECE if element == "float" else -(-inputs // sizes[1]) * sizes[1]
        most = max(TILE_PAIR, min(DECODED_ROWS, DECODED_BYTES // (piece * SIZES[element]) // TILE_PAIR * TILE_PAIR))
        height = -(-rows // -(-rows // most))
        return [Step(DecodingKernel(element, -(-height // TILE_PAIR) * TILE_PAIR, piece, *sizes), rows)]
    counts = [MAX_ROWS_WITHOUT_AMX] * (rows // MAX_ROWS_WITHOUT_AMX) + [rows % MAX_ROWS_WITHOUT_AMX] * (
        rows % MAX_ROWS_WITHOUT_AMX > 0
    )
    return [Step(ExpandingKernel(element, count, *sizes), count) for count in counts]


def block_kernel(block: tuple[int, int], types: tuple[str, str], panel: Panel) -> BlockKernel:
    """The kernel for blocks and panels; `types`: LLVM's of a block's number and the weights."""
    is_high = block[0] % 8 == 0 and panel.vectors <= HIGH_VECTORS and most_vectors(4) == 4
    return BlockKernel(*block, types[0], panel, 8 if is_high else min(block[0], 4), types[1])


def scattered_kernel(sizes: tuple[int, int], stored: str, panel: Panel) -> ScatteredKernel:
    """The kernel for single weights and panels; `sizes`: outputs of a chunk and inputs of a piece."""
    return ScatteredKernel(*sizes, panel, stored, besides(panel))


def grouped_kernel(pattern: tuple[int, int], stored: str, panel: Panel) -> SelectPanelKernel:
    """The kernel for N of every M weights and panels."""
    return SelectPanelKernel(*pattern, *SELECTED, panel, stored, besides(panel))


def most_vectors(many: int) -> int:
    """Vectors of a panel at most: so many if the processor has 32 registers for them, half of it with 16."""
    return many if target.host().registers == 32 else many // 2


def besides(panel: Panel) -> int:
    """Outputs that are computed beside one another, so that no product waits for the one before it."""
    return 4 if panel.vectors <= most_vectors(4) else 2


def most_direct(outputs: int, inputs: int) -> int:
    """Rows of the batch up to which reading activations where they are is faster than packing them.

    Measured for blocks of 4 (equal from 3 to 4) and of 16 outputs (faster up to 8).
    """
    length = inputs if outputs == 1 else outputs
    return max(2, min(length, 16) // 2)


def panel_steps(element: str, rows: int, lanes: int, most: int) -> list[tuple[RowPanel, int]]:
    """Panels of at most so many vectors, as equal as can be, and how many rows each kind is for.

    Example:
        >>> [(panel.vectors, rows) for panel, rows in panel_steps("float", 100, 16, 4)]
        [(4, 64), (3, 36)]
    """
    while lanes > QUAD and rows <= lanes // 2:
        lanes //= 2
    total = -(-rows // lanes)
    count = -(-total // most)
    small, larger = divmod(total, count)
    first = larger * (small + 1) * lanes
    steps = [(RowPanel(element, lanes, small + 1), min(first, rows))] * (larger > 0)
    return steps + [(RowPanel(element, lanes, small), rows - first)] * (rows > first)


def _block_vectors(rows: int, inputs: int, registers: int) -> int:
    """Vectors of activations beside which a tile's sums fit into the registers.

    Of low blocks a fifth vector makes 3 to 6 %, as long as the panel leaves room in the second cache.
    """
    if registers < 32:
        return 2
    if rows % 8 == 0:
        return HIGH_VECTORS
    return 5 if inputs <= MOST_OF_FIVE else 4
