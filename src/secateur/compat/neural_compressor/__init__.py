"""Provide the pruning interface for torch that Intel Neural Compressor removed.

Only the imports have to change:

``from neural_compressor.config import WeightPruningConfig`` and ``from neural_compressor.training import
prepare_compression, prepare_pruning`` become ``from secateur.compat.neural_compressor import ...``.
"""

from __future__ import annotations

from secateur.compat.neural_compressor._install import install, uninstall
from secateur.compat.neural_compressor._removed import build_getattr
from secateur.compat.neural_compressor.callbacks import CompressionManager, PruningCallbacks
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.compat.neural_compressor.prepare import prepare_compression, prepare_pruning
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
