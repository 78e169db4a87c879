"""Prune Keras 3 models during training. Importing this module imports Keras and its backend."""

from __future__ import annotations

from secateur._deprecated import serve_old_names
from secateur._packages import require_keras

require_keras()

from secateur.training.keras import PruningCallback, PruningOptimizer, finalize  # noqa: E402 - check for Keras first

__all__ = ["PruningCallback", "PruningOptimizer", "finalize"]

__getattr__ = serve_old_names(__name__, {"UpdateMasks": "secateur.keras:PruningCallback"})
