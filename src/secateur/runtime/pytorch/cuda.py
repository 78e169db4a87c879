"""What the libraries that torch ships make of zeros on a GPU."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from secateur.runtime.pytorch.ways import Way, Zeroed

__all__ = ["cuda_ways", "stored_bytes"]

BLOCK_SIDES = (64, 32, 16)
"""Sides of square blocks that the block-sparse product of torch is tried with, the largest first."""

MOST_BLOCKS = 0.5
"""Share of blocks that stay, above which nothing is tried."""

UNFINISHED = "Sparse BSR tensor support is in beta|The PyTorch API of SparseSemiStructuredTensor"
"""What torch warns of; whoever asked for the fastest way need not know."""

HALVES = (torch.float16, torch.bfloat16)
"""Types that 2:4 products are made for."""


def cuda_ways(layer: nn.Module, found: Zeroed) -> Iterator[Way | str]:
    """2:4 through cuSPARSELt or CUTLASS, and blocks of 16 and more through the block-sparse product."""
    from secateur.runtime.pytorch.ways import Way

    if type(layer) is not nn.Linear:
        yield f"the GPU's sparse products serve Linear layers, not {type(layer).__name__}"
        return
    weight = layer.weight.detach()
    if found.pattern in ("2:4", "1:4", "1:2") and weight.dtype in HALVES:
        yield Way("2:4 of the GPU", _with_weight(layer, lambda: torch.sparse.to_sparse_semi_structured(weight)))
        return
    for side in BLOCK_SIDES:
        if _share_of_blocks(weight, side) <= MOST_BLOCKS:
            blocks = partial(weight.to_sparse_bsr, (side, side))
            yield Way(f"{side}x{side} blocks of the GPU", _with_weight(layer, blocks))
            return
    yield f"the GPU has no product for {found.pattern!r} in {weight.dtype}"


def stored_bytes(weight: torch.Tensor) -> int:
    """Bytes of a block-sparse or semi-structured weight."""
    if weight.layout == torch.sparse_bsr:
        held = [weight.values(), weight.crow_indices(), weight.col_indices()]
    else:
        held = [one for name in ("packed", "meta") if (one := getattr(weight, name, None)) is not None]
    return sum(one.nbytes for one in held)


def _share_of_blocks(weight: torch.Tensor, side: int) -> float:
    """Square blocks that are not zero, in [0, 1]; 1 where they do not tile the weight."""
    if any(size % side for size in weight.shape):
        return 1.0
    tiles = weight.reshape(weight.shape[0] // side, side, weight.shape[1] // side, side)
    return float((tiles != 0).any(dim=3).any(dim=1).float().mean())


def _with_weight(layer: nn.Linear, make: Callable[[], torch.Tensor]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        shell = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=UNFINISHED)
            shell.weight = nn.Parameter(make(), requires_grad=False)
        shell.bias = copy.copy(layer.bias)
        return shell.train(layer.training)

    return build
