"""Processes that train or prune one model together."""

from __future__ import annotations

__all__: list[str] = []
