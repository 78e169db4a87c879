"""From a manifest's entries to a report."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.artifact.manifest import Manifest, TensorEntry
from secateur.artifact.report import ArtifactReport, TensorRow

__all__ = ["disk_bytes", "report_on", "report_on_written"]


def report_on(
    title: str,
    tensors: Mapping[str, TensorEntry],
    *,
    problems: Mapping[str, str] | None = None,
    disk_bytes: int | None = None,
    is_packed: bool,
) -> ArtifactReport:
    """A row for every tensor that has a layout, is packed or has a problem; the others are summed up."""
    problems = problems or {}
    shown = {
        name: entry
        for name, entry in tensors.items()
        if entry.layout is not None or entry.packer is not None or name in problems
    }
    return ArtifactReport(
        title=title,
        tensors=tuple(_row(name, entry, problems.get(name)) for name, entry in shown.items()),
        others=len(tensors) - len(shown),
        other_bytes=sum(entry.stored_bytes for name, entry in tensors.items() if name not in shown),
        disk_bytes=disk_bytes,
        is_packed=is_packed,
    )


def report_on_written(title: str, manifest: Manifest) -> ArtifactReport:
    """The report on an artifact that was just written."""
    size = disk_bytes(manifest, len(manifest.text().encode()))
    return report_on(title, manifest.tensors, disk_bytes=size, is_packed=True)


def disk_bytes(manifest: Manifest, manifest_bytes: int) -> int:
    """Bytes of all files of an artifact, of which the manifest has so many."""
    return manifest_bytes + sum(manifest.shards.values()) + sum(file.size for file in manifest.files.values())


def _row(name: str, entry: TensorEntry, problem: str | None) -> TensorRow:
    return TensorRow(
        name=name,
        layer=entry.layer,
        shape=entry.shape,
        dtype=entry.dtype,
        pattern=entry.pattern,
        zeros=entry.zeros,
        negative_zeros=entry.negative_zeros,
        dense_bytes=entry.dense_bytes,
        packed_bytes=entry.stored_bytes,
        packing=entry.packing_name,
        problem=problem,
    )
