"""The modes of ``secateur slim``."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["SlimMode"]


class SlimMode(StrEnum):
    """Which zero units are removed; see `secateur.slim`."""

    EXACT = "exact"
    UNIFORM = "uniform"
