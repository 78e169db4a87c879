"""Select the format in which a weight is packed, and the kernels that multiply it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels.amx.bitmask_small_batch import BitmaskSmallBatchKernel
from secateur.runtime.kernels.amx.bitmask_tiles import TILE_PAIR, BitmaskTileKernel
from secateur.runtime.kernels.amx.column_tiles import Bfloat16ColumnTileKernel, Float32ColumnTileKernel
from secateur.runtime.kernels.block.panel import BlockPanelKernel
from secateur.runtime.kernels.block.small_batch import BlockSmallBatchKernel
from secateur.runtime.kernels.codegen import target
from secateur.runtime.kernels.codegen.kernel import PARAMETERS, Kernel
from secateur.runtime.kernels.codegen.panel import ActivationPanel
from secateur.runtime.kernels.codegen.row_panel import RowPanel
from secateur.runtime.kernels.codegen.target import TargetMachine
from secateur.runtime.kernels.codegen.transpose import QUAD
from secateur.runtime.kernels.codegen.vectors import FLOAT_BYTES, TYPE_BYTES
from secateur.runtime.kernels.formats.base import STRIP, AmxFormat, WeightFormat
from secateur.runtime.kernels.formats.bitmask import BITMASK_CHUNK, BITMASK_PIECE, BitmaskFormat
from secateur.runtime.kernels.formats.block import BlockFormat
from secateur.runtime.kernels.formats.column_tiles import TILE_INPUTS, ColumnTileFormat
from secateur.runtime.kernels.formats.dtypes import DTYPE_NAMES, Floats
from secateur.runtime.kernels.formats.nm import NMFormat
from secateur.runtime.kernels.formats.output_pairs import OUTPUT_PAIR_PIECE, OutputPairFormat
from secateur.runtime.kernels.formats.unstructured import UNSTRUCTURED_PIECE, UnstructuredFormat
from secateur.runtime.kernels.nm.output_pairs import OutputPairPanelKernel, OutputPairSmallBatchKernel
from secateur.runtime.kernels.nm.panel import NMPanelKernel
from secateur.runtime.kernels.nm.small_batch import NMSmallBatchKernel
from secateur.runtime.kernels.unstructured.panel import UnstructuredPanelKernel
from secateur.runtime.kernels.unstructured.small_batch import UnstructuredSmallBatchKernel

__all__ = [
    "MAX_ROWS_WITHOUT_AMX",
    "KernelStep",
    "compile_kernel",
    "get_max_vectors",
    "pack_weight",
    "pack_weight_for_amx",
    "select_convolution_kernel",
    "select_kernels",
]

MAX_BLOCK_OUTPUTS = 64
"""Largest height of a block. Taller blocks are cut, because kernels keep the results of a block row on the stack."""

MIN_PAIRED_DENSITY = 0.4
"""Smallest density for which pairing outputs pays off: 2:4 gets 1.2 times as fast, 1:4 only 1.07 times."""

MAX_COLUMN_TILE_DENSITY = 0.4
"""Largest share of weights in column tiles for which gathering activations is faster than decoding a bitmask."""

MAX_ROWS_WITHOUT_AMX = 8
"""Largest batch for which the bitmask format is multiplied with vector instructions rather than AMX."""

MAX_GATHER_ROWS = 2
"""Largest batch for which gathering is faster than panels: equal at 2 to 3 rows, half as fast at 4."""

MAX_NM_SMALL_BATCH = 16
"""Largest batch for which selecting N:M activations in registers is faster than panels."""

NM_CHUNK, NM_PIECE = 128, 128
"""Outputs of a chunk and inputs of a piece of the N:M panel kernel."""

MAX_TALL_BLOCK_VECTORS = 3
"""Widest panel, in vectors, for which the sums of eight outputs fit in 32 registers."""

MAX_FIVE_VECTOR_INPUTS = 3072
"""Largest number of inputs for which a panel of five vectors takes less than 1 MiB."""

MAX_WIDE_PANEL_BYTES = 3 << 18
"""Largest size of a panel that is wider than four vectors."""

MAX_AMX_ROWS, AMX_FLOAT32_INPUTS, MAX_AMX_PANEL_BYTES = 256, 1024, 1 << 20
"""Limits on a panel of the bitmask AMX kernel: its rows, its inputs at a time for float32, and its bytes."""


class KernelStep(NamedTuple):
    """A kernel and the number of consecutive batch rows that it handles."""

    kernel: Kernel
    rows: int


_compiled: dict[tuple[Kernel, TargetMachine], Callable[..., None]] = {}


def compile_kernel(kernel: Kernel) -> Callable[..., None]:
    """Compile a kernel for this processor, once per process.

    Raises:
        MissingPackageError: llvmlite is not installed.
    """
    key = kernel, target.get_host()
    function = _compiled.get(key)
    if function is None:
        function = _compiled.setdefault(key, target.compile_function(kernel.emit(), "run", len(PARAMETERS)))
    return function


def pack_weight(weight_OI: Floats, pattern: str, rows: int) -> WeightFormat:
    """Pack a weight in the format of its pattern, or as unstructured if it violates an N:M pattern.

    Args:
        weight_OI: The weight.
        pattern: Pattern of the weight, a block or N:M.
        rows: Batch rows to optimize for.
    """
    if ":" in pattern:
        keep, group = (int(size) for size in pattern.split(":"))
        if not NMFormat.can_pack(weight_OI, keep, group):
            return UnstructuredFormat.from_dense(weight_OI)
        is_paired = rows > MAX_NM_SMALL_BATCH and keep >= MIN_PAIRED_DENSITY * group
        return OutputPairFormat.from_dense(weight_OI) if is_paired else NMFormat.from_dense(weight_OI, keep, group)
    height, width = (int(size) for size in pattern.split("x"))
    height = max(size for size in range(1, min(height, MAX_BLOCK_OUTPUTS) + 1) if height % size == 0)
    if height == width == 1:
        return UnstructuredFormat.from_dense(weight_OI)
    return BlockFormat.from_dense(weight_OI, (height, width))


def pack_weight_for_amx(weight_OI: Floats, dtype: str) -> AmxFormat:
    """Pack a weight for AMX as ``float32`` or ``bfloat16``.

    Raises:
        LayerError: A float32 weight cannot be split into two bfloat16. See `formats.dtypes.split_float32`.
    """
    tiles = ColumnTileFormat.from_dense(weight_OI, TILE_INPUTS if dtype == "bfloat16" else TILE_INPUTS // 2)
    if tiles.values.size > MAX_COLUMN_TILE_DENSITY * weight_OI.size:
        return BitmaskFormat.from_dense(weight_OI, dtype)
    return tiles.to_dtype(dtype, np.empty(0, np.float32)) if dtype == "bfloat16" else tiles.split_values()


def select_kernels(weights: WeightFormat, activation_type: str, rows: int) -> list[KernelStep]:
    """Select the kernels that multiply a batch of at least one row, each for a part of the rows.

    Args:
        weights: The packed weights.
        activation_type: LLVM type of the activations.
        rows: Batch rows.

    Raises:
        ConfigError: The weights are packed for AMX and need activations of another type.
        LayerError: The weights need AMX, which this processor does not have.
    """
    inputs, host, types = weights.shape[1], target.get_host(), (activation_type, weights.weight_type)
    if isinstance(weights, AmxFormat):
        return select_amx_kernels(weights, activation_type, rows, has_amx=target.has_amx())
    match weights:
        case BlockFormat():
            return _select_block_kernels(weights.block, inputs, (weights.index_type, *types), rows, host)
        case NMFormat():
            return _select_nm_kernels((weights.keep, weights.group), types, rows, host)
        case OutputPairFormat():
            return _select_output_pair_kernels((weights.chunk, OUTPUT_PAIR_PIECE), types, inputs, rows, host)
    assert isinstance(weights, UnstructuredFormat)
    return _select_unstructured_kernels((weights.chunk, UNSTRUCTURED_PIECE), types, rows, host)


def select_convolution_kernel(weights: WeightFormat, panel: ActivationPanel) -> Kernel:
    """Select the kernel that multiplies panels of image pixels.

    Raises:
        ConfigError: The weights are packed for AMX, which has no convolution kernel.
    """
    host = target.get_host()
    match weights:
        case BlockFormat():
            return _create_block_kernel(weights.block, (weights.index_type, weights.weight_type), panel, host)
        case NMFormat():
            return _create_nm_kernel((weights.keep, weights.group), weights.weight_type, panel, host)
        case OutputPairFormat():
            return OutputPairPanelKernel(weights.chunk, OUTPUT_PAIR_PIECE, panel, weights.weight_type)
        case UnstructuredFormat():
            sizes = weights.chunk, UNSTRUCTURED_PIECE
            return UnstructuredPanelKernel(*sizes, panel, weights.weight_type, _get_interleave(panel, host))
    raise ConfigError("a weight packed for AMX has no convolution kernel. Pack it with PackedMatrix.from_dense.")


def get_max_vectors(weights: WeightFormat) -> int:
    """Return the widest panel, in vectors, that the convolution kernel of a format supports."""
    host = target.get_host()
    match weights:
        case BlockFormat():
            return 5 if _has_32_registers(host) else 2
        case OutputPairFormat():
            return 8 if _has_32_registers(host) else 4
    return 4 if _has_32_registers(host) else 2


def select_amx_kernels(weights: AmxFormat, activation_type: str, rows: int, *, has_amx: bool) -> list[KernelStep]:
    """Select the kernels for weights that are packed for AMX. See `select_kernels`.

    Args:
        weights: The packed weights.
        activation_type: LLVM type of the activations.
        rows: Batch rows.
        has_amx: Whether the processor has AMX.

    Raises:
        ConfigError: The weights need activations of another type.
        LayerError: The weights need AMX, which this processor does not have.
    """
    if activation_type != weights.activation_type:
        expected, actual = DTYPE_NAMES[weights.activation_type], DTYPE_NAMES[activation_type]
        raise ConfigError(f"a weight packed for AMX as {expected} needs activations of {expected}, found {actual}.")
    if isinstance(weights, BitmaskFormat):
        return _select_bitmask_kernels(weights.shape[1], activation_type, rows, has_amx=has_amx)
    assert isinstance(weights, ColumnTileFormat)
    if not has_amx:
        raise LayerError(
            "the weight was packed for a processor with AMX, which this one lacks. Compile the model on this machine."
        )
    return _select_column_tile_kernels(weights.index_type, activation_type, rows)


@lru_cache(maxsize=1024)
def _select_block_kernels(
    block: tuple[int, int], inputs: int, types: tuple[str, str, str], rows: int, host: TargetMachine
) -> list[KernelStep]:
    """Select kernels for blocks. `types` are the LLVM types of block indices, activations and weights."""
    index_type, activation_type, weight_type = types
    if rows <= _get_max_block_small_batch(*block):
        kernel = BlockSmallBatchKernel(*block, index_type, activation_type, rows, host.lanes, weight_type)
        return [KernelStep(kernel, rows)]
    panels = split_into_panels(activation_type, rows, host.lanes, _get_block_vectors(block[0], inputs, host))
    types_of_panel = index_type, weight_type
    return [KernelStep(_create_block_kernel(block, types_of_panel, panel, host), count) for panel, count in panels]


@lru_cache(maxsize=1024)
def _select_unstructured_kernels(
    sizes: tuple[int, int], types: tuple[str, str], rows: int, host: TargetMachine
) -> list[KernelStep]:
    """Select kernels for unstructured weights.

    Args:
        sizes: Outputs of a chunk and inputs of a piece.
        types: LLVM types of activations and weights.
        rows: Batch rows.
        host: The processor.
    """
    activation_type, weight_type = types
    if rows <= MAX_GATHER_ROWS:
        return [KernelStep(UnstructuredSmallBatchKernel(*sizes, activation_type, rows, weight_type), rows)]
    panels = split_into_panels(activation_type, rows, host.lanes, 4 if _has_32_registers(host) else 2)
    return [
        KernelStep(UnstructuredPanelKernel(*sizes, panel, weight_type, _get_interleave(panel, host)), count)
        for panel, count in panels
    ]


@lru_cache(maxsize=1024)
def _select_nm_kernels(
    pattern: tuple[int, int], types: tuple[str, str], rows: int, host: TargetMachine
) -> list[KernelStep]:
    """Select kernels for N:M. `pattern` is (N, M), `types` are the LLVM types of activations and weights."""
    activation_type, weight_type = types
    if rows <= MAX_NM_SMALL_BATCH:
        has_permute = host.is_x86 and host.lanes == STRIP
        return [KernelStep(NMSmallBatchKernel(*pattern, activation_type, rows, has_permute, weight_type), rows)]
    panels = split_into_panels(activation_type, rows, host.lanes, 4 if _has_32_registers(host) else 2)
    return [KernelStep(_create_nm_kernel(pattern, weight_type, panel, host), count) for panel, count in panels]


@lru_cache(maxsize=1024)
def _select_output_pair_kernels(
    sizes: tuple[int, int], types: tuple[str, str], inputs: int, rows: int, host: TargetMachine
) -> list[KernelStep]:
    """Select kernels for pairs of outputs. See `_select_unstructured_kernels` for the arguments."""
    activation_type, weight_type = types
    if rows <= MAX_GATHER_ROWS:
        return [KernelStep(OutputPairSmallBatchKernel(*sizes, activation_type, rows, weight_type), rows)]
    fitting = max(4, MAX_WIDE_PANEL_BYTES // (inputs * host.lanes * FLOAT_BYTES))
    panels = split_into_panels(activation_type, rows, host.lanes, min(fitting, 8 if _has_32_registers(host) else 4))
    return [KernelStep(OutputPairPanelKernel(*sizes, panel, weight_type), count) for panel, count in panels]


@lru_cache(maxsize=1024)
def _select_column_tile_kernels(index_type: str, activation_type: str, rows: int) -> list[KernelStep]:
    vectors = 4 if rows > 2 * STRIP else 2
    if activation_type == "bfloat":
        panel = RowPanel(activation_type, STRIP, vectors, packed_type="bfloat")
        return [KernelStep(Bfloat16ColumnTileKernel(index_type, panel), rows)]
    panel = RowPanel(activation_type, STRIP, vectors, packed_type="halves")
    return [KernelStep(Float32ColumnTileKernel(index_type, panel), rows)]


@lru_cache(maxsize=1024)
def _select_bitmask_kernels(inputs: int, activation_type: str, rows: int, *, has_amx: bool) -> list[KernelStep]:
    sizes = BITMASK_CHUNK, BITMASK_PIECE
    if has_amx and rows > MAX_ROWS_WITHOUT_AMX:
        padded_inputs = -(-inputs // BITMASK_PIECE) * BITMASK_PIECE
        panel_inputs = AMX_FLOAT32_INPUTS if activation_type == "float" else padded_inputs
        fitting = MAX_AMX_PANEL_BYTES // (panel_inputs * TYPE_BYTES[activation_type]) // TILE_PAIR * TILE_PAIR
        max_rows = max(TILE_PAIR, min(MAX_AMX_ROWS, fitting))
        panel_rows = -(-rows // -(-rows // max_rows))
        panel_rows = -(-panel_rows // TILE_PAIR) * TILE_PAIR
        return [KernelStep(BitmaskTileKernel(activation_type, panel_rows, panel_inputs, *sizes), rows)]
    full, rest = divmod(rows, MAX_ROWS_WITHOUT_AMX)
    counts = [MAX_ROWS_WITHOUT_AMX] * full + [rest] * (rest > 0)
    return [KernelStep(BitmaskSmallBatchKernel(activation_type, count, *sizes), count) for count in counts]


def _create_block_kernel(
    block: tuple[int, int], types: tuple[str, str], panel: ActivationPanel, host: TargetMachine
) -> BlockPanelKernel:
    """Create the kernel for blocks and panels. `types` are the LLVM types of block indices and weights."""
    fits_eight = block[0] % 8 == 0 and panel.vectors <= MAX_TALL_BLOCK_VECTORS and _has_32_registers(host)
    return BlockPanelKernel(*block, types[0], panel, 8 if fits_eight else min(block[0], 4), types[1])


def _create_nm_kernel(
    pattern: tuple[int, int], weight_type: str, panel: ActivationPanel, host: TargetMachine
) -> NMPanelKernel:
    return NMPanelKernel(*pattern, NM_CHUNK, NM_PIECE, panel, weight_type, _get_interleave(panel, host))


def _has_32_registers(host: TargetMachine) -> bool:
    return host.registers == 32


def _get_interleave(panel: ActivationPanel, host: TargetMachine) -> int:
    """Return the number of outputs computed side by side, which hides the latency of FMAs."""
    return 4 if panel.vectors <= (4 if _has_32_registers(host) else 2) else 2


def _get_max_block_small_batch(outputs: int, inputs: int) -> int:
    """Return the largest batch for which reading activations in place is faster than packing them into panels.

    In measurements, both are equal at 3 to 4 rows for blocks of 4 outputs. For blocks of 16 outputs, reading in place
    is faster up to 8 rows.
    """
    length = inputs if outputs == 1 else outputs
    return max(2, min(length, 16) // 2)


def _get_block_vectors(block_outputs: int, inputs: int, host: TargetMachine) -> int:
    """Return the number of vectors in a panel for which the sums of a register tile fit in the registers.

    A fifth vector is 3 to 6 % faster for short blocks, as long as the panel leaves room in the L2 cache.
    """
    if not _has_32_registers(host):
        return 2
    if block_outputs % 8 == 0:
        return MAX_TALL_BLOCK_VECTORS
    return 5 if inputs <= MAX_FIVE_VECTOR_INPUTS else 4


def split_into_panels(activation_type: str, rows: int, lanes: int, max_vectors: int) -> list[tuple[RowPanel, int]]:
    """Split a batch into panels of at most `max_vectors` vectors whose widths differ by at most one vector.

    Returns:
        Each kind of panel, and the number of batch rows that it covers.

    Examples:
        >>> [(panel.vectors, rows) for panel, rows in split_into_panels("float", 100, 16, 4)]
        [(4, 64), (3, 36)]
    """
    while lanes > QUAD and rows <= lanes // 2:
        lanes //= 2
    total = -(-rows // lanes)
    count = -(-total // max_vectors)
    vectors, wider = divmod(total, count)
    wide_rows = wider * (vectors + 1) * lanes
    steps = [(RowPanel(activation_type, lanes, vectors + 1), min(wide_rows, rows))] * (wider > 0)
    return steps + [(RowPanel(activation_type, lanes, vectors), rows - wide_rows)] * (rows > wide_rows)
