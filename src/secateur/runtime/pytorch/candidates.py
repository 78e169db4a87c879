"""Find the sparse layers that could replace a dense layer, or the reasons why there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from secateur.runtime.kernels import MAX_ROWS_WITHOUT_AMX, PackedMatrix, get_unsupported_reason, has_amx
from secateur.runtime.pytorch.layers import ChannelConv2d, ChannelLinear, SparseConv2d, SparseLayer, SparseLinear
from secateur.runtime.pytorch.layers.library import (
    LIBRARIES,
    BlockSparseFormat,
    LibraryFormat,
    LibraryLinear,
    LibraryMatrix,
    SemiStructuredFormat,
)
from secateur.runtime.pytorch.recognized_weight import RecognizedWeight

__all__ = ["INT8_TOLERANCE", "MIN_SPARSITY", "SparseCandidate", "find_candidates"]

MIN_SPARSITY = 0.2
"""Layers with a smaller share of zeros are not benchmarked."""

UNSTRUCTURED = "1x1"

KERNEL_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Maps the type of a layer to the type in which CPU kernels store its weight."""

INT8_TOLERANCE = 0.05
"""Tolerance for weights rounded to eight bits. Each error is at most 1/254 of the largest weight in the channel."""

BLOCK_SIDES = (128, 64, 32, 16)
"""Sizes of square blocks for which torch's block-sparse product is benchmarked."""

MAX_BLOCK_DENSITY = 0.5
"""Block-sparse products are not benchmarked for weights with a larger share of nonzero blocks."""

HALF_DTYPES = (torch.float16, torch.bfloat16)
"""Types that the 2:4 libraries support."""


@dataclass(frozen=True, slots=True)
class SparseCandidate:
    """A sparse layer that could replace a dense one.

    Attributes:
        name: Name for the report.
        build: Builds the sparse layer.
        tolerance: Largest allowed difference from the dense outputs, relative to the largest dense output, or ``None``
            to allow only rounding errors of the layer's type.
        reason: Reason for the report if this candidate is chosen.
    """

    name: str
    build: Callable[[], SparseLayer]
    tolerance: float | None = None
    reason: str = "faster"


def find_candidates(
    layer: nn.Module, pruned: RecognizedWeight, rows: int, *, int8: bool = False
) -> Iterator[SparseCandidate | str]:
    """Yield the candidates for a layer, and the reasons why others are not supported.

    Args:
        layer: The dense layer.
        pruned: The weight of the layer.
        rows: Rows that the layer multiplies in one call.
        int8: Whether weights may be rounded to eight bits.
    """
    if pruned.sparsity < MIN_SPARSITY or pruned.pattern is None:
        yield "too few zeros for a speed-up" if pruned.sparsity else "it has no zeros"
        return
    yield from _find_channel_candidates(layer, pruned)
    if layer.get_parameter("weight").device.type == "cuda":
        yield from _find_gpu_candidates(layer, pruned)
        return
    yield from _find_amx_candidates(layer, pruned, rows)
    for pattern in dict.fromkeys((_get_kernel_pattern(pruned.pattern), UNSTRUCTURED)):
        yield from _find_kernel_candidates(layer, pruned, pattern, rows)
        if int8:
            yield from _find_kernel_candidates(layer, pruned, pattern, rows, int8=True)


def _get_kernel_pattern(pattern: str) -> str:
    """Return the pattern to request from kernels, which cannot skip whole channels."""
    return UNSTRUCTURED if "channel" in pattern else pattern


def _find_channel_candidates(layer: nn.Module, pruned: RecognizedWeight) -> Iterator[SparseCandidate]:
    """Yield a smaller dense layer if enough channels are zero."""
    nonzero = (pruned.matrix != 0).reshape(pruned.view.canonical_shape)
    outputs, inputs = nonzero.any(dim=(1, 2)), nonzero.any(dim=(0, 1))
    sparsity = 1 - float(outputs.float().mean() * inputs.float().mean())
    if sparsity < MIN_SPARSITY:
        return
    if isinstance(layer, nn.Conv2d):
        yield SparseCandidate("smaller dense", lambda: ChannelConv2d(layer, outputs, inputs))
    else:
        yield SparseCandidate("smaller dense", lambda: ChannelLinear(layer, outputs, inputs))


def _find_amx_candidates(layer: nn.Module, pruned: RecognizedWeight, rows: int) -> Iterator[SparseCandidate]:
    """Yield AMX tiles if the processor has AMX, except for a few rows of float32, where vectors are faster."""
    dtype = KERNEL_DTYPES.get(layer.get_parameter("weight").dtype)
    if (
        dtype is None
        or isinstance(layer, nn.Conv2d)
        or not has_amx()
        or (dtype == "float32" and rows <= MAX_ROWS_WITHOUT_AMX)
    ):
        return
    weight, pattern = pruned.matrix.numpy(), pruned.pattern or UNSTRUCTURED
    yield SparseCandidate(
        f"tiles, {dtype}",
        lambda: _build_linear(layer, pruned, PackedMatrix.from_dense_for_amx(weight, pattern, dtype)),
        reason="faster, also because the dense layer does not use AMX tiles" if dtype == "float32" else "faster",
    )


def _find_kernel_candidates(
    layer: nn.Module, pruned: RecognizedWeight, pattern: str, rows: int, *, int8: bool = False
) -> Iterator[SparseCandidate | str]:
    """Yield the kernel for a pattern and a number of rows, or the reason why there is none."""
    shape = (pruned.matrix.shape[0], pruned.matrix.shape[1])
    dtype = KERNEL_DTYPES.get(layer.get_parameter("weight").dtype)
    if dtype is None:
        yield f"there are no kernels for {layer.get_parameter('weight').dtype} on the CPU"
        return
    dtype = "int8" if int8 else dtype
    if reason := get_unsupported_reason(pattern, shape, dtype):
        yield reason
        return

    def build() -> SparseLayer:
        matrix = PackedMatrix.from_dense(pruned.matrix.numpy(), pattern, dtype, rows)
        if isinstance(layer, nn.Conv2d):
            return SparseConv2d(layer, matrix)
        return _build_linear(layer, pruned, matrix)

    yield SparseCandidate(f"{pattern} kernel, {dtype}", build, INT8_TOLERANCE if int8 else None)


def _build_linear(layer: nn.Module, pruned: RecognizedWeight, matrix: PackedMatrix) -> SparseLinear:
    return SparseLinear(layer, matrix, is_transposed=pruned.view.output_axes == (1,))


def _find_gpu_candidates(layer: nn.Module, pruned: RecognizedWeight) -> Iterator[SparseCandidate | str]:
    for library_format in find_library_formats(layer, pruned):
        if isinstance(library_format, str):
            yield library_format
        else:
            build = partial(build_library_layer, layer, pruned, library_format)
            yield SparseCandidate(library_format.name, build)


def find_library_formats(layer: nn.Module, pruned: RecognizedWeight) -> Iterator[LibraryFormat | str]:
    """Yield the formats of GPU libraries that can store the weight of a layer, or the reason why there are none."""
    if isinstance(layer, nn.Conv2d):
        yield "there are no sparse kernels for convolutions on a GPU"
        return
    dtype, formats = layer.get_parameter("weight").dtype, list[LibraryFormat | str]()
    if dtype in HALF_DTYPES and _is_two_of_four(pruned.matrix):
        formats += map(SemiStructuredFormat, LIBRARIES)
    formats += [
        BlockSparseFormat(side)
        for side in BLOCK_SIDES
        if _measure_block_density(pruned.matrix, side) <= MAX_BLOCK_DENSITY
    ]
    yield from formats or [f"there are no sparse kernels for {pruned.pattern!r} in {dtype} on a GPU"]


def build_library_layer(layer: nn.Module, pruned: RecognizedWeight, library_format: LibraryFormat) -> LibraryLinear:
    """Build a layer whose weight is stored in the format of a GPU library."""
    weight = layer.get_parameter("weight")
    matrix = LibraryMatrix(pruned.matrix.to(weight.device, weight.dtype), library_format)
    return LibraryLinear(layer, matrix, is_transposed=pruned.view.output_axes == (1,))


def _is_two_of_four(matrix: torch.Tensor) -> bool:
    """Whether at most two of every four consecutive weights of a row are nonzero."""
    outputs, inputs = matrix.shape
    return inputs % 4 == 0 and bool(((matrix != 0).view(outputs, inputs // 4, 4).sum(dim=2) <= 2).all())


def _measure_block_density(matrix: torch.Tensor, side: int) -> float:
    """Compute the share of square blocks that are nonzero, in [0, 1], or 1 if blocks do not tile the matrix."""
    if any(size % side for size in matrix.shape):
        return 1.0
    blocks = matrix.reshape(matrix.shape[0] // side, side, matrix.shape[1] // side, side)
    return float((blocks != 0).any(dim=3).any(dim=1).float().mean())
