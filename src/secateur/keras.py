"""Prune Keras 3 models during training. Importing this module imports Keras and its backend."""

from __future__ import annotations

from secateur._deprecated import deprecated_getattr
from secateur._packages import require_keras

require_keras()

from secateur.training.keras import PruningCallback, PruningOptimizer, finalize  # noqa: E402 - check for Keras first

__all__ = ["PruningCallback", "PruningOptimizer", "finalize"]

__getattr__ = deprecated_getattr(__name__, {"UpdateMasks": "secateur.keras:PruningCallback"})
