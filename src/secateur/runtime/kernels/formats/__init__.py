"""Memory formats of packed weights."""

from __future__ import annotations

__all__: list[str] = []
