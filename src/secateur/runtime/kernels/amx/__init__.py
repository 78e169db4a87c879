"""Kernels that multiply tiles of bfloat16 with Intel AMX."""

from __future__ import annotations

__all__: list[str] = []
