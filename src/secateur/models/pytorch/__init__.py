"""Load transformers models, weights for other torch models, and calibration data."""

from __future__ import annotations

from secateur.models.pytorch.batches import make_text_batches, read_array_batches
from secateur.models.pytorch.checkpoint import open_model_folder
from secateur.models.pytorch.transformers_models import (
    CompanionSaver,
    load_architecture,
    load_pretrained,
    load_tokenizer,
)
from secateur.models.pytorch.weights import load_weights

__all__ = [
    "CompanionSaver",
    "load_architecture",
    "load_pretrained",
    "load_tokenizer",
    "load_weights",
    "make_text_batches",
    "open_model_folder",
    "read_array_batches",
]
