"""Prune language models with Wanda and DSnoT."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.wanda.prune import prune_wanda

__all__ = ["prune_wanda"]
