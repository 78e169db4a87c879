"""Remove whole branches and blocks from a torch model."""

from __future__ import annotations

__all__: list[str] = []
