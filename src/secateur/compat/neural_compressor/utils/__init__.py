"""Provide the package `neural_compressor.utils`."""

from __future__ import annotations

from secateur.compat.neural_compressor._removed import build_getattr
from secateur.compat.neural_compressor.utils import logger
from secateur.compat.neural_compressor.utils.utility import DotDict, LazyImport, set_random_seed

__all__ = ["DotDict", "LazyImport", "logger", "set_random_seed"]

__getattr__ = build_getattr(__name__)
