"""Provide torch's data loader to modules that do not import torch."""

from __future__ import annotations

from torch.utils.data import DataLoader

__all__ = ["DataLoader"]
