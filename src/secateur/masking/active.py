"""The pruners whose run has not ended."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

__all__ = ["ACTIVE", "list_active"]

ACTIVE: WeakSet[Any] = WeakSet()
"""The pruners. Those that are no longer reachable disappear."""


def list_active() -> list[Any]:
    """Return the active pruners, each with the attribute ``model``."""
    return list(ACTIVE)
