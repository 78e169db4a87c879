"""Pruning for Keras 3: ``import secateur.keras`` loads Keras with its backend."""

from __future__ import annotations

from secateur._packages import require_keras

require_keras()

from secateur.training.keras import PruningOptimizer, UpdateMasks, finalize  # noqa: E402 - says what is missing first

__all__ = ["PruningOptimizer", "UpdateMasks", "finalize"]
