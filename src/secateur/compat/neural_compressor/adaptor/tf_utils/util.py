"""Compare versions."""

from __future__ import annotations

from secateur.compat.neural_compressor.utils.utility import version1_lt_version2

__all__ = ["version1_lt_version2"]
