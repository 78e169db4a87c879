"""Remove modules from a list, such as the blocks of a model, and record their positions."""

from __future__ import annotations

from collections.abc import Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from torch import nn

__all__ = ["REMOVED", "Assign", "drop_blocks", "list_children", "list_removed_blocks", "record_blocks"]

Assign: TypeAlias = Callable[[MutableMapping[str, Any], str, Any], None]
"""Assigns a value to a key of a mapping, such as the attributes of a module, so that it can be undone."""

REMOVED = "_secateur_removed"
"""Attribute of a list of modules with the positions of those that were removed, as they were at first."""

POSITIONS = frozenset({"block_idx", "idx", "layer_id", "layer_idx", "layer_index", "layer_num", "layer_number"})
"""Attributes with the position of a block in its list."""


def drop_blocks(container: nn.Module, positions: Collection[int], assign: Assign) -> None:
    """Remove modules from a list, and number the others again.

    Args:
        container: A ``ModuleList``, ``Sequential`` or similar.
        positions: Which of its modules to remove.
        assign: Makes the changes.

    Examples:
        >>> layers = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.GELU())
        >>> drop_blocks(layers, [1], dict.__setitem__)
        >>> layers
        Sequential(
          (0): ReLU()
          (1): GELU(approximate='none')
        )
    """
    left: dict[str, nn.Module | None] = {}
    for position, (key, block) in enumerate(container._modules.items()):
        if position not in positions:
            for module in () if block is None else block.modules():
                _move(module, position, len(left), assign)
            left[str(len(left)) if key.isdigit() else key] = block
    assign(container.__dict__, "_modules", left)


def list_children(model: nn.Module, container: str) -> list[str]:
    """Return the names of the modules in a list.

    Examples:
        >>> list_children(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU())), "1")
        ['1.0']
    """
    prefix = f"{container}." if container else ""
    return [f"{prefix}{key}" for key in model.get_submodule(container)._modules]


def list_removed_blocks(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the lists of a model from which modules were removed, and the positions of these.

    Examples:
        >>> list_removed_blocks(nn.Sequential(nn.ReLU()))
        {}
    """
    records = ((name, module.__dict__.get(REMOVED)) for name, module in model.named_modules())
    return {name: record for name, record in records if record}


def record_blocks(container: nn.Module, positions: Collection[int], assign: Assign) -> None:
    """Record which modules will be removed from a list, in addition to those that already were.

    Raises:
        ValueError: The list is shorter.

    Examples:
        >>> layers = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.GELU())
        >>> for positions in ([1], [1]):
        ...     record_blocks(layers, positions, dict.__setitem__)
        ...     drop_blocks(layers, positions, dict.__setitem__)
        >>> list_removed_blocks(layers)
        {'': (1, 2)}
    """
    if max(positions, default=0) >= len(container._modules):
        raise ValueError(f"a list has {len(container._modules)} modules, and its module {max(positions)} was removed")
    before = container.__dict__.get(REMOVED, ())
    left = [position for position in range(len(container._modules) + len(before)) if position not in before]
    assign(container.__dict__, REMOVED, tuple(sorted({*before, *(left[position] for position in positions)})))


def _move(module: nn.Module, before: int, after: int, assign: Assign) -> None:
    """Update attributes with the position of a block."""
    for name in POSITIONS & module.__dict__.keys():
        value = module.__dict__[name]
        if before != after and type(value) is int and value - before in (0, 1):
            assign(module.__dict__, name, value - before + after)
