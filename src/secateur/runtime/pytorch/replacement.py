"""Replace modules of a model by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

__all__ = ["replace_modules", "replace_modules_temporarily"]


def replace_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Replace modules by others, wherever the model refers to them.

    If it is interrupted, the model stays as it was.

    Args:
        model: The model, changed in place.
        modules: Name of a module → what replaces it.
    """
    slots = _find_slots(model, modules)
    try:
        _fill(slots)
    except BaseException:
        _restore(slots)
        raise


@contextmanager
def replace_modules_temporarily(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace modules by others within the block; see `replace_modules`."""
    slots = _find_slots(model, modules)
    try:
        _fill(slots)
        yield
    finally:
        _restore(slots)


class ModuleSlot(NamedTuple):
    """A reference of a model to a module that is to be replaced.

    Attributes:
        children: The children of the module's parent.
        name: The module's name among them.
        old: The module.
        new: What replaces it.
    """

    children: dict[str, nn.Module | None]
    name: str
    old: nn.Module
    new: nn.Module


def _find_slots(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[ModuleSlot]:
    """Find all references to the modules, which may have several names."""
    new = {id(model.get_submodule(name)): module for name, module in modules.items()}
    return [
        ModuleSlot(parent._modules, name, child, new[id(child)])
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and id(child) in new
    ]


def _fill(slots: Iterable[ModuleSlot]) -> None:
    for slot in slots:
        slot.children[slot.name] = slot.new


def _restore(slots: Iterable[ModuleSlot]) -> None:
    for slot in slots:
        slot.children[slot.name] = slot.old
