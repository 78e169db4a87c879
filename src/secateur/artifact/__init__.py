"""Save, load, inspect, verify and convert pruned models: artifacts are packed, versioned and verifiable."""

from __future__ import annotations

from secateur.artifact.conversion import convert
from secateur.artifact.reader import Artifact, PackedTensor, RawTensor
from secateur.artifact.report import ArtifactReport, TensorRow
from secateur.artifact.saving import load, save
from secateur.artifact.verification import examine, inspect, verify

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
