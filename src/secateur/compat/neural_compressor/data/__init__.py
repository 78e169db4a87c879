"""Provide the data loaders and dummy data sets that pruning code imports."""

from __future__ import annotations

from secateur.compat.neural_compressor._removed import build_getattr
from secateur.compat.neural_compressor.data.dataloaders import DATALOADERS, DataLoader
from secateur.compat.neural_compressor.data.datasets import DATASETS, Datasets

__all__ = ["DATALOADERS", "DATASETS", "DataLoader", "Datasets"]

__getattr__ = build_getattr(__name__)
