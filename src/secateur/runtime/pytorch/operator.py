"""The products as operators of torch's own, so that models with exchanged layers can be compiled."""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

__all__ = ["handle_of"]

LAYERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Handle → layer: a graph holds numbers and tensors, and a packed weight is neither."""

_numbers = count()


def handle_of(layer: nn.Module) -> int:
    """A number that means this layer for as long as it lives."""
    number = next(_numbers)
    LAYERS[number] = layer
    return number


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
