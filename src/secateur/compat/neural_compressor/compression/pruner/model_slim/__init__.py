"""Prune feed-forward networks and attention heads, and remove what was pruned."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.model_slim.auto_slim import model_slim, parse_auto_slim_config

__all__ = ["model_slim", "parse_auto_slim_config"]
