"""Compute in float32 with a model in float16, whose outputs cannot be compared reliably on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["convert_float16"]


@contextmanager
def convert_float16(model: nn.Module) -> Iterator[None]:
    """Convert float16 parameters and buffers to float32 inside a ``with`` block, and back by their names.

    Numbers that do not change inside are the same afterwards, bit for bit.

    Examples:
        >>> model = nn.Linear(4, 3, dtype=torch.float16)
        >>> with convert_float16(model):
        ...     model(torch.ones(2, 4)).dtype
        torch.float32
        >>> model.weight.dtype
        torch.float16
    """
    names = {name for name, tensor in _list_tensors(model).items() if tensor.dtype == torch.float16}
    try:
        _convert(model, names, torch.float32)
        yield
    finally:
        _convert(model, names, torch.float16)


def _convert(model: nn.Module, names: set[str], dtype: torch.dtype) -> None:
    for name, tensor in _list_tensors(model).items():
        if name in names:
            tensor.data = tensor.data.to(dtype)


def _list_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
