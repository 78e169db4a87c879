"""Change modules so that everything can be undone."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Journal"]

MISSING = object()


class _Change(NamedTuple):
    owner: MutableMapping[str, Any]
    key: str
    before: Any


class _Release(NamedTuple):
    tensor: torch.Tensor
    restore: Callable[[], torch.Tensor]


class Journal:
    """Replaces tensors and attributes of modules, and remembers the current ones.

    Rolling back assigns the same objects again, so that the model is the same bit for bit.
    """

    def __init__(self) -> None:
        self._changes: list[_Change | _Release] = []

    def replace(self, owner: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Assign to a key of a mapping, such as the parameters of a module."""
        self._changes.append(_Change(owner, key, owner.get(key, MISSING)))
        owner[key] = value

    def replace_tensors(self, model: nn.Module, tensors: dict[int, torch.Tensor]) -> None:
        """Replace parameters and buffers under all their names, by the id of the current ones."""
        for module in model.modules():
            registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for registry in registries:
                for key, value in registry.items():
                    if value is not None and id(value) in tensors:
                        self.replace(registry, key, tensors[id(value)])

    def release(self, tensor: torch.Tensor, new: torch.Tensor, restore: Callable[[], torch.Tensor]) -> None:
        """Free the memory of a tensor that was replaced: who still refers to it sees the new one.

        Args:
            tensor: The tensor.
            new: Its replacement.
            restore: Returns its values again, from which rolling back gives it memory.
        """
        self._changes.append(_Release(tensor, restore))
        tensor.data = new.detach()

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of an object."""
        self.replace(owner.__dict__, name, value)

    def list_attributes(self) -> dict[int, list[str]]:
        """Return the changed keys of each mapping, by its id."""
        keys: dict[int, dict[str, None]] = {}
        for change in self._list_assignments():
            keys.setdefault(id(change.owner), {})[change.key] = None
        return {owner: [*changed] for owner, changed in keys.items()}

    def find_first(self, owner: MutableMapping[str, Any], key: str) -> Any:
        """Return what a key had before its first change."""
        changes = self._list_assignments()
        return next(change.before for change in changes if change.owner is owner and change.key == key)

    def _list_assignments(self) -> list[_Change]:
        return [change for change in self._changes if isinstance(change, _Change)]

    def mark(self) -> int:
        """Return a position to roll back to."""
        return len(self._changes)

    def roll_back(self, position: int = 0) -> None:
        """Undo all changes after a position, the last one first."""
        while len(self._changes) > position:
            change = self._changes.pop()
            if isinstance(change, _Release):
                change.tensor.data = change.restore()
            elif change.before is MISSING:
                del change.owner[change.key]
            else:
                change.owner[change.key] = change.before
