"""Record on torch modules which of their sizes changed, and give the same sizes to a module of the original sizes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import nn

__all__ = ["CONFIG", "RECORD", "Sizes", "clear_sizes", "find_mismatch", "read_sizes", "set_sizes"]

RECORD = "_secateur_sizes"
"""Attribute of a module whose tensors changed shape: attribute that changed with them → its value."""

CONFIG = "config."
"""Prefix of the fields of a module's configuration, of which the module then has its own copy."""

Number: TypeAlias = int | tuple[int, ...]

Sizes: TypeAlias = dict[str, dict[str, Number]]
"""Module → attribute → value, such as ``{"fc1": {"out_features": 12}}``; without attributes if only tensors changed."""


def read_sizes(model: nn.Module) -> Sizes:
    """Return the recorded sizes of the modules of a model.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> set_sizes(model, {"0": {"out_features": 1}})
        >>> read_sizes(model)
        {'0': {'out_features': 1}}
    """
    records = ((name, module.__dict__.get(RECORD)) for name, module in model.named_modules())
    return {name: dict(record) for name, record in records if record is not None}


def find_mismatch(model: nn.Module, sizes: Mapping[str, Mapping[str, Number]]) -> str | None:
    """Return why a model cannot get sizes: it lacks a module or an attribute, or the attribute is not a size.

    Examples:
        >>> find_mismatch(nn.Sequential(nn.Linear(2, 2)), {"0": {"num_heads": 2}})
        "module '0' has no size 'num_heads'"
    """
    modules = dict(model.named_modules())
    for name, attributes in sizes.items():
        if name not in modules:
            return f"there is no module {name!r}"
        for attribute, value in attributes.items():
            owner, key = _find_owner(modules[name], attribute)
            before = getattr(owner, "__dict__", {}).get(key)
            if not (_is_size(before) and isinstance(before, tuple | list) == isinstance(value, tuple)):
                return f"module {name!r} has no size {attribute!r}"
    return None


def set_sizes(model: nn.Module, sizes: Mapping[str, Mapping[str, Number]]) -> None:
    """Set attributes of modules and record them. Tensors do not change."""
    for name, attributes in sizes.items():
        module = model.get_submodule(name)
        if any(attribute.startswith(CONFIG) for attribute in attributes):
            module.__dict__["config"] = copy.copy(module.config)
        for attribute, value in attributes.items():
            owner, key = _find_owner(module, attribute)
            before = owner.__dict__.get(key)
            setattr(owner, key, list(value) if isinstance(before, list) and isinstance(value, tuple) else value)
        module.__dict__[RECORD] = module.__dict__.get(RECORD, {}) | dict(attributes)


def clear_sizes(model: nn.Module) -> None:
    """Remove all records, because the configuration of the model describes its sizes."""
    for module in model.modules():
        module.__dict__.pop(RECORD, None)


def _find_owner(module: nn.Module, attribute: str) -> tuple[Any, str]:
    """Return the object with an attribute, the module or its configuration, and the name of the attribute there."""
    if attribute.startswith(CONFIG):
        return getattr(module, "config", None), attribute.removeprefix(CONFIG)
    return module, attribute


def _is_size(value: Any) -> bool:
    items = value if isinstance(value, tuple | list) else [value]
    return all(isinstance(item, int) and not isinstance(item, bool) for item in items)
