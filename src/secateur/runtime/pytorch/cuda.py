"""What the libraries that torch brings make of zeros on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from secateur.runtime.pytorch.library import LIBRARIES, Form, LibraryLinear, LibraryMatrix, SemiStructured, SquareBlocks

if TYPE_CHECKING:
    from secateur.runtime.pytorch.ways import Zeroed

__all__ = ["cuda_forms", "in_form"]

BLOCK_SIDES = (128, 64, 32, 16)
"""Sides of square blocks that the block-sparse product of torch is tried with."""

MOST_BLOCKS = 0.5
"""Share of blocks that stay, above which nothing is tried."""

HALVES = (torch.float16, torch.bfloat16)
"""Types that 2:4 products are made for."""


def cuda_forms(layer: nn.Module, found: Zeroed) -> Iterator[Form | str]:
    """The forms that a layer's weight can be stored in, or why there is none."""
    if isinstance(layer, nn.Conv2d):
        yield "the GPU's sparse products serve linear layers, not convolutions"
        return
    dtype, forms = layer.get_parameter("weight").dtype, list[Form | str]()
    if dtype in HALVES and _is_two_of_four(found.weight):
        forms += map(SemiStructured, LIBRARIES)
    forms += [SquareBlocks(side) for side in BLOCK_SIDES if _share_of_blocks(found.weight, side) <= MOST_BLOCKS]
    yield from forms or [f"the GPU has no product for {found.pattern!r} in {dtype}"]


def in_form(layer: nn.Module, found: Zeroed, form: Form) -> LibraryLinear:
    """A layer with its weight in a form."""
    weight = layer.get_parameter("weight")
    matrix = LibraryMatrix(found.weight.to(weight.device, weight.dtype), form)
    return LibraryLinear(layer, matrix, is_transposed=found.view.output_axes == (1,))


def _is_two_of_four(weight: torch.Tensor) -> bool:
    """Whether at most two of each four weights in a row are not zero."""
    outputs, inputs = weight.shape
    return inputs % 4 == 0 and bool(((weight != 0).view(outputs, inputs // 4, 4).sum(dim=2) <= 2).all())


def _share_of_blocks(weight: torch.Tensor, side: int) -> float:
    """Square blocks that are not zero, in [0, 1]; 1 where they do not tile the weight."""
    if any(size % side for size in weight.shape):
        return 1.0
    tiles = weight.reshape(weight.shape[0] // side, side, weight.shape[1] // side, side)
    return float((tiles != 0).any(dim=3).any(dim=1).float().mean())
