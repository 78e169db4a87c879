"""The products as operators of torch's own, so that models with exchanged layers can be compiled."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import nn

if TYPE_CHECKING:
    from secateur.runtime.pytorch.layers import OperatorLayer

__all__ = ["handle_of", "multiply"]

LAYERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Handle → layer: a graph holds numbers and tensors, and a packed weight is neither."""

_numbers = count()


def handle_of(layer: nn.Module) -> int:
    """A number that means this layer for as long as it lives."""
    number = next(_numbers)
    LAYERS[number] = layer
    return number


def multiply(layer: OperatorLayer, rows: torch.Tensor) -> torch.Tensor:
    """Rows of shape (…, I) to rows of shape (…, O); while torch.compile looks on, as one operator.

    Args:
        layer: A linear layer.
        rows: Its inputs.
    """
    if torch.compiler.is_compiling():
        result: torch.Tensor = torch.ops.secateur.multiply(rows, layer.handle, layer.out_features)
        return result
    return layer.multiplied(rows)


@torch.library.custom_op("secateur::multiply", mutates_args=())
def _multiply(rows: torch.Tensor, handle: int, outputs: int) -> torch.Tensor:  # noqa: ARG001 - for its shape
    result: torch.Tensor = LAYERS[handle].multiplied(rows)
    return result


@_multiply.register_fake
def _shape_of_product(rows: torch.Tensor, handle: int, outputs: int) -> torch.Tensor:  # noqa: ARG001
    return rows.new_empty((*rows.shape[:-1], outputs))


@torch.library.custom_op("secateur::convolve", mutates_args=())
def _convolve(images: torch.Tensor, handle: int, sizes: list[int]) -> torch.Tensor:  # noqa: ARG001 - for its shape
    result: torch.Tensor = LAYERS[handle].convolved(images)
    return result.contiguous()


@_convolve.register_fake
def _shape_of_convolution(images: torch.Tensor, handle: int, sizes: list[int]) -> torch.Tensor:  # noqa: ARG001
    return images.new_empty((len(images), *sizes))
