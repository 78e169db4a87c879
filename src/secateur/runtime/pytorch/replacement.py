"""Replace modules of a model by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

__all__ = ["replace_modules", "replace_modules_temporarily"]


def replace_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Replace modules everywhere in the model, even if a module has several names.

    If the replacement is interrupted, the model is restored.

    Args:
        model: The model. It is modified in place.
        modules: Maps the name of a module to its replacement.
    """
    slots = _find_slots(model, modules)
    try:
        _fill(slots)
    except BaseException:
        _restore(slots)
        raise


@contextmanager
def replace_modules_temporarily(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace modules inside a ``with`` block, and restore them afterwards. See `replace_modules`."""
    slots = _find_slots(model, modules)
    try:
        _fill(slots)
        yield
    finally:
        _restore(slots)


class ModuleSlot(NamedTuple):
    """A reference to a module, which can be pointed at a replacement.

    Attributes:
        children: The child modules of the parent, by name.
        name: Name of the module in `children`.
        old: The original module.
        new: The replacement.
    """

    children: dict[str, nn.Module | None]
    name: str
    old: nn.Module
    new: nn.Module


def _find_slots(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[ModuleSlot]:
    """Find all references to the modules. A module may have several names."""
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
