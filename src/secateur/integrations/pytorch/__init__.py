"""Common code of the integrations for torch."""

from __future__ import annotations

__all__: list[str] = []
