"""Threads that share the work of a product."""

from __future__ import annotations

__all__: list[str] = []
