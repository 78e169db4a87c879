"""Models of torch: of transformers, and of code with their weights in a file."""

from __future__ import annotations

from secateur.models.pytorch.batches import array_batches, text_batches
from secateur.models.pytorch.folders import Companions, architecture, tokenizer_of, trained
from secateur.models.pytorch.states import fill

__all__ = ["Companions", "architecture", "array_batches", "fill", "text_batches", "tokenizer_of", "trained"]
