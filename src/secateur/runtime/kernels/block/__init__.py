"""Kernels for block patterns such as ``4x1``."""

from __future__ import annotations

__all__: list[str] = []
