"""Which kernels a batch is multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from secateur.runtime.kernels.blocks import BlockKernel
from secateur.runtime.kernels.chunks import STRIP
from secateur.runtime.kernels.decoding import PAIR, DecodingKernel
from secateur.runtime.kernels.direct import DirectKernel
from secateur.runtime.kernels.expanding import ExpandingKernel
from secateur.runtime.kernels.gathering import GatherKernel
from secateur.runtime.kernels.kernel import PARAMETERS, Kernel
from secateur.runtime.kernels.pairs import PairGatherKernel, PairKernel
from secateur.runtime.kernels.panels import Panel
from secateur.runtime.kernels.rows import RowPanel
from secateur.runtime.kernels.selecting import SelectKernel, SelectPanelKernel
from secateur.runtime.kernels.strips import ScatteredKernel
from secateur.runtime.kernels.tiles import BrainTileKernel, HalfTileKernel
from secateur.runtime.kernels.turning import FLOAT_BYTES, QUAD, SIZES

__all__ = [
    "MAX_ROWS_WITHOUT_AMX",
    "MOST_SELECTED",
    "Step",
    "block_kernel",
    "block_steps",
    "code",
    "grouped_kernel",
    "grouped_steps",
    "most_vectors",
    "paired_steps",
    "scattered_kernel",
    "scattered_steps",
    "tile_steps",
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
        from secateur.runtime.kernels.target import compiled

        made = _made.setdefault(kernel, compiled(kernel.emit(), "run", len(PARAMETERS)))
    return made


_made: dict[Kernel, Callable[..., None]] = {}


@lru_cache(maxsize=1024)
def block_steps(block: tuple[int, int], inputs: int, types: tuple[str, str, str], rows: int) -> list[Step]:
    """The kernels for blocks, one after another.

    Args:
        block: Outputs and inputs of a block.
        inputs: Of the weight.
        types: LLVM's types of a block's number, the activations and the weights.
        rows: Of the batch.
    """
    from secateur.runtime.kernels.target import host

    index, element, stored = types
    target = host()
    if rows <= most_direct(*block):
        return [Step(DirectKernel(*block, index, element, rows, target.lanes, stored), rows)]
    vectors = _block_vectors(block[0], inputs, target.registers)
    panels = panel_steps(element, rows, target.lanes, vectors)
    return [Step(block_kernel(block, (index, stored), panel), count) for panel, count in panels]


@lru_cache(maxsize=1024)
def scattered_steps(sizes: tuple[int, int], types: tuple[str, str], rows: int) -> list[Step]:
    """The kernels for single weights, one after another.

    Args:
        sizes: Outputs of a chunk and inputs of a piece.
        types: LLVM's types of the activations and the weights.
        rows: Of the batch.
    """
    from secateur.runtime.kernels.target import host

    (element, stored), target = types, host()
    if rows <= MOST_GATHERED:
        return [Step(GatherKernel(*sizes, element, rows, stored), rows)]
    panels = panel_steps(element, rows, target.lanes, most_vectors(4))
    return [Step(scattered_kernel(sizes, stored, panel), count) for panel, count in panels]


@lru_cache(maxsize=1024)
def grouped_steps(pattern: tuple[int, int], types: tuple[str, str], rows: int) -> list[Step]:
    """The kernels for N of every M weights, one after another.

    Args:
        pattern: N and M.
        types: LLVM's types of the activations and the weights.
        rows: Of the batch.
    """
    from secateur.runtime.kernels.target import host

    (element, stored), target = types, host()
    if rows <= MOST_SELECTED:
        permutes = target.is_x86 and target.lanes == STRIP
        return [Step(SelectKernel(*pattern, element, rows, permutes, stored), rows)]
    panels = panel_steps(element, rows, target.lanes, most_vectors(4))
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
    from secateur.runtime.kernels.target import host

    (element, stored), target = types, host()
    if rows <= MOST_GATHERED:
        return [Step(PairGatherKernel(*sizes, element, rows, stored), rows)]
    roomy = max(4, PANEL_BYTES // (inputs * target.lanes * FLOAT_BYTES))
    panels = panel_steps(element, rows, target.lanes, min(roomy, most_vectors(8)))
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
    from secateur.runtime.kernels.target import has_amx

    if has_amx() and rows > MAX_ROWS_WITHOUT_AMX:
        piece = DECODED_PIECE if element == "float" else -(-inputs // sizes[1]) * sizes[1]
        most = max(PAIR, min(DECODED_ROWS, DECODED_BYTES // (piece * SIZES[element]) // PAIR * PAIR))
        height = -(-rows // -(-rows // most))
        return [Step(DecodingKernel(element, -(-height // PAIR) * PAIR, piece, *sizes), rows)]
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
    from secateur.runtime.kernels.target import host

    return many if host().registers == 32 else many // 2


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
