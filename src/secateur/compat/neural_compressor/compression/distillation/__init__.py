"""The distillation losses of Intel Neural Compressor."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.distillation.criterions import build_criterion

__all__ = ["build_criterion"]
