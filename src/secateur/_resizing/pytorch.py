"""Record on torch modules which of their sizes changed, and give the same sizes to a module of the original sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import nn

__all__ = ["RECORD", "Sizes", "clear_sizes", "read_sizes", "set_sizes"]

RECORD = "_secateur_sizes"
"""Attribute of a module whose tensors changed shape: attribute that changed with them → its value."""

Sizes: TypeAlias = dict[str, dict[str, int | tuple[int, ...]]]
"""Module → attribute → value, such as ``{"fc1": {"out_features": 12}}``; without attributes if only tensors changed."""


def read_sizes(model: nn.Module) -> Sizes:
    """Return the recorded sizes of the modules of a model.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> set_sizes(model, {"0": {"out_features": 1}})
        >>> read_sizes(model)
        {'0': {'out_features': 1}}
    """
    records = ((name, module.__dict__.get(RECORD)) for name, module in model.named_modules(remove_duplicate=False))
    return {name: dict(record) for name, record in records if record is not None}


def set_sizes(model: nn.Module, sizes: Mapping[str, Mapping[str, int | tuple[int, ...]]]) -> None:
    """Set attributes of modules and record them. Tensors do not change."""
    for name, attributes in sizes.items():
        module = model.get_submodule(name)
        module.__dict__.update(attributes)
        module.__dict__[RECORD] = module.__dict__.get(RECORD, {}) | dict(attributes)


def clear_sizes(model: nn.Module) -> None:
    """Remove all records, because the configuration of the model describes its sizes."""
    for module in model.modules():
        module.__dict__.pop(RECORD, None)
