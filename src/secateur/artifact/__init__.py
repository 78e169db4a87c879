"""The pruned model on disk: packed, versioned, verifiable."""

from __future__ import annotations

from secateur.artifact.reader import Artifact, PackedTensor, RawTensor
from secateur.artifact.report import ArtifactReport, TensorRow
from secateur.artifact.saving import load, save
from secateur.artifact.survey import convert, examine, inspect, verify

__all__ = [
    "Artifact",
    "ArtifactReport",
    "PackedTensor",
    "RawTensor",
    "TensorRow",
    "convert",
    "examine",
    "inspect",
    "load",
    "save",
    "verify",
]
