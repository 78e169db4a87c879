"""Remember which modules of a list were removed."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

__all__ = ["REMOVED", "list_children", "list_removed_blocks", "merge_positions"]

REMOVED = "_secateur_removed"
"""Attribute of a list of modules with the positions of those that were removed, as they were at first."""


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


def merge_positions(before: Collection[int], more: Collection[int], left: int) -> tuple[int, ...]:
    """Combine positions that were removed with others, which count only the modules that were left.

    Args:
        before: Positions in the full list that were removed first.
        more: Positions, among those that were left, that were removed then.
        left: How many modules were left in between.

    Examples:
        >>> merge_positions([1], [0, 1], left=3)
        (0, 1, 2)
    """
    kept = [position for position in range(left + len(before)) if position not in before]
    return tuple(sorted({*before, *(kept[position] for position in more)}))
