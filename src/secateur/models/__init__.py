"""Load models by reference, as on the command line: code, files, transformers folders and artifacts."""

from __future__ import annotations

from secateur.models.references import (
    TrainedModel,
    find_artifact_path,
    find_transformers_path,
    is_packed,
    load_model,
    load_trained,
)

__all__ = [
    "TrainedModel",
    "find_artifact_path",
    "find_transformers_path",
    "is_packed",
    "load_model",
    "load_trained",
]
