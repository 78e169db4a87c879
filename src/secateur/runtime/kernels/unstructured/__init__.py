"""Kernels for unstructured sparsity."""

from __future__ import annotations

__all__: list[str] = []
