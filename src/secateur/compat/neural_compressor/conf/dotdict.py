"""Provide `DotDict`."""

from __future__ import annotations

from secateur.compat.neural_compressor.utils.utility import DotDict

__all__ = ["DotDict"]
