"""What the integrations for torch share."""

from __future__ import annotations

__all__: list[str] = []
