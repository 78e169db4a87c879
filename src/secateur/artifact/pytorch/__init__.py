"""Save torch modules, including transformers models, as artifacts, and load them."""

from __future__ import annotations

from secateur.artifact.pytorch.checkpoint_layers import describe_layers
from secateur.artifact.pytorch.loading import build_model, load_weights
from secateur.artifact.pytorch.model_source import make_carried_source, make_source
from secateur.artifact.pytorch.tensors import TYPES, to_torch

__all__ = ["TYPES", "build_model", "describe_layers", "load_weights", "make_carried_source", "make_source", "to_torch"]
