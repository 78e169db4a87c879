"""Provide the pruning interface that Intel Neural Compressor removed.

Only the imports have to change: ``neural_compressor`` becomes ``secateur.compat.neural_compressor``.
"""

from __future__ import annotations

from secateur.compat.neural_compressor._install import install, uninstall
from secateur.compat.neural_compressor._removed import build_getattr
from secateur.compat.neural_compressor.compression.callbacks import PruningCallbacks
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.compat.neural_compressor.training import CompressionManager, prepare_compression, prepare_pruning
from secateur.compat.neural_compressor.utils.utility import set_random_seed

__all__ = [
    "CompressionManager",
    "PruningCallbacks",
    "WeightPruningConfig",
    "install",
    "prepare_compression",
    "prepare_pruning",
    "set_random_seed",
    "uninstall",
]

__getattr__ = build_getattr(__name__)
