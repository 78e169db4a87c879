"""Remove whole branches and blocks of a torch model."""

from __future__ import annotations

__all__: list[str] = []
