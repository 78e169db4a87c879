"""Provide the package `neural_compressor.compression.pruner.pruners`."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.pruners.base import BasePruner

__all__ = ["BasePruner"]
