"""Change modules so that everything can be undone."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Journal"]

MISSING = object()


class _Change(NamedTuple):
    owner: MutableMapping[str, Any]
    key: str
    before: Any


class Journal:
    """Replaces tensors and attributes of modules, and remembers the present ones.

    Rolling back assigns the same objects again, so that the model is the same bit for bit.
    """

    def __init__(self) -> None:
        self._changes: list[_Change] = []

    def replace(self, owner: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Assign to a key of a mapping, such as the parameters of a module."""
        self._changes.append(_Change(owner, key, owner.get(key, MISSING)))
        owner[key] = value

    def replace_tensors(self, model: nn.Module, tensors: dict[int, torch.Tensor]) -> None:
        """Replace parameters and buffers under all their names, by the id of the present ones."""
        for module in model.modules():
            registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for registry in registries:
                for key, value in registry.items():
                    if value is not None and id(value) in tensors:
                        self.replace(registry, key, tensors[id(value)])

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of an object."""
        self.replace(owner.__dict__, name, value)

    def list_attributes(self) -> dict[int, list[str]]:
        """Return the changed keys of each mapping, by its id."""
        keys: dict[int, dict[str, None]] = {}
        for change in self._changes:
            keys.setdefault(id(change.owner), {})[change.key] = None
        return {owner: [*changed] for owner, changed in keys.items()}

    def find_first(self, owner: MutableMapping[str, Any], key: str) -> Any:
        """Return what a key had before its first change."""
        return next(change.before for change in self._changes if change.owner is owner and change.key == key)

    def mark(self) -> int:
        """Return a position to roll back to."""
        return len(self._changes)

    def roll_back(self, position: int = 0) -> None:
        """Undo all changes after a position, the last one first."""
        while len(self._changes) > position:
            owner, key, before = self._changes.pop()
            if before is MISSING:
                del owner[key]
            else:
                owner[key] = before
