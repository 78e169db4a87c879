"""Choose the widths of a torch model under a budget."""

from __future__ import annotations

__all__: list[str] = []
