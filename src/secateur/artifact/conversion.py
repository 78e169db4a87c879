"""Convert saved models from packed to dense and back, and checkpoints of other tools into artifacts."""

from __future__ import annotations

from pathlib import Path

from secateur._files import as_path
from secateur.artifact.checkpoints import open_checkpoint
from secateur.artifact.reader import Artifact, is_artifact_folder
from secateur.artifact.report import ArtifactReport, report_on_artifact
from secateur.artifact.writer import SHARD_BYTES, write
from secateur.results import PruningReport

__all__ = ["convert"]


def convert(
    source: str | Path,
    target: str | Path,
    *,
    report: PruningReport | None = None,
    dense: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> ArtifactReport:
    """Convert a saved model into an artifact, packed or dense, tensor by tensor and without building the model.

    Args:
        source: The folder of an artifact, a safetensors file, or a transformers folder.
        target: The folder to write: new, empty, or an artifact, which is replaced.
        report: The report of the pruning run that wrote `source`; see `secateur.save`. ``None``: keep what the manifest
            of an artifact states.
        dense: Store every tensor dense, in files that transformers can read.
        shard_bytes: Maximum bytes of tensors in one shard.

    Raises:
        ArtifactError: `source` is damaged or does not match the report, or `target` cannot be written.
        StateError: The report belongs to another model.
    """
    path, target = as_path(source), as_path(target)
    if is_artifact_folder(path):
        artifact = Artifact(path)
        artifact.check_files()
        opened = artifact.make_source()
    else:
        opened = open_checkpoint(path, copies_files=True)
    manifest = write(opened.add_report(report), target, dense=dense, shard_bytes=shard_bytes)
    return report_on_artifact(str(target), manifest)
