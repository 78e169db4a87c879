"""Refuse Neural Compressor's evaluation of language models."""

from __future__ import annotations

from secateur.compat.neural_compressor._removed import build_getattr

__all__: list[str] = []

__getattr__ = build_getattr(__name__)
