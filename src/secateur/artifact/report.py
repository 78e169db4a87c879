"""Report the tensors of an artifact as a table or as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from secateur._wording import format_count, format_reasons, format_shape
from secateur.artifact.manifest import Manifest, TensorEntry
from secateur.results import Column, LayerRecord, Measure, Report, Row, Summary

__all__ = ["ArtifactReport", "TensorRow", "report_on_artifact", "report_on_tensors"]

MAX_NEGATIVE_ZEROS = 0.001
"""Share of the zeros that may be ``-0.0`` without a note, because they barely increase the file size."""


LEFT_DENSE = "not a layer that pruning selects unless it is named"
"""Why a tensor is dense that belongs to no layer that pruning would prune."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow(Row):
    """Reports one tensor.

    Attributes:
        name: The name of the tensor.
        layer: The layer whose weight it is, if that layer was pruned or could be.
        shape: The dense shape.
        dtype: The data type, such as ``"BF16"``.
        pattern: The pattern of its zeros: the requested one, or the strictest that was recognized; ``None``: there is
            no pattern.
        zeros: Number of zeros.
        negative_zeros: Number of zeros that are ``-0.0``, which packings store like any other number.
        dense_bytes: Bytes when dense.
        packed_bytes: Bytes as packed.
        packing: How it is packed, or ``"dense"``.
        problem: Why verification failed; ``None``: there is no problem.
        verified_as: The pattern by which the zeros were verified in place of `pattern`, because no registered class
            defines which weights are pruned together; ``None``: it was `pattern`.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("tensor", "name"),
        Column(">shape", "shape", format_shape),
        Column("type", "dtype"),
        Column("pattern", "pattern"),
        Column(">zeros", "sparsity", "{:.2%}"),
        Column(">bytes dense", "dense_bytes", "{:,}"),
        Column(">packed", "packed_bytes", "{:,}"),
        Column(">share", lambda row: row.packed_bytes / row.dense_bytes if row.dense_bytes else 1.0, "{:.3f}"),
        Column("packing", lambda row: row.packing if row.problem is None else f"✗ {row.problem}"),
    )
    computed: ClassVar[tuple[str, ...]] = ("sparsity",)

    name: str
    layer: str | None
    shape: tuple[int, ...]
    dtype: str
    pattern: str | None
    zeros: int
    negative_zeros: int
    dense_bytes: int
    packed_bytes: int
    packing: str
    problem: str | None = None
    verified_as: str | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.count if self.count else 0.0

    def record(self) -> LayerRecord:
        """Return the record of the layer whose weight it is."""
        is_left = self.layer is None and self.pattern is None
        return LayerRecord(
            name=self.layer or self.name.removesuffix(".weight"),
            shape=self.shape,
            pattern=self.pattern,
            weights=self.count,
            sparsity=self.sparsity,
            dense_reason=LEFT_DENSE if is_left else None,
            note=self.problem,
            dtype=self.dtype,
            dense_bytes=self.dense_bytes,
            stored_bytes=self.packed_bytes,
            packing=self.packing,
        )

    @property
    def is_dimmed(self) -> bool:
        """Whether the tensor is dense and has no problem."""
        return self.packing == "dense" and not self.problem


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ArtifactReport(Report):
    """Reports the tensors of a saved model, or of a model in memory.

    Attributes:
        title: What was inspected.
        tensors: The weights of layers, and all packed tensors.
        others: Number of other tensors.
        other_bytes: Bytes of the other tensors.
        disk_bytes: Bytes of the files; ``None``: there are no files.
        is_packed: Whether the packed bytes are in files; if not, they are an estimate.
    """

    computed: ClassVar[tuple[str, ...]] = ("dense_bytes", "packed_bytes", "problems")

    title: str
    tensors: tuple[TensorRow, ...]
    others: int
    other_bytes: int
    disk_bytes: int | None
    is_packed: bool

    @property
    def problems(self) -> dict[str, str]:
        """Tensor → why verification failed."""
        return {row.name: row.problem for row in self.tensors if row.problem is not None}

    def note_verified_patterns(self, patterns: Mapping[str, str]) -> Self:
        """Return the report with the patterns by which tensors were verified in place of theirs.

        Args:
            patterns: Name of a tensor → the pattern.
        """
        return replace(self, tensors=tuple(replace(row, verified_as=patterns.get(row.name)) for row in self.tensors))

    @property
    def failure(self) -> str:
        """The problems as an error message."""
        lines = format_reasons(self.problems.items())
        return f"{self.title}: {format_count(len(self.problems), 'tensor')} failed verification:\n{lines}"

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors when dense."""
        return self.other_bytes + sum(row.dense_bytes for row in self.tensors)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all tensors as packed."""
        return self.other_bytes + sum(row.packed_bytes for row in self.tensors)

    def summarize(self) -> Summary:
        """Return the size of the model, and how each tensor is stored."""
        size = Measure(
            quantity="size", name="tensors on disk", unit="bytes", dense=self.dense_bytes, present=self.packed_bytes
        )
        return Summary(
            title=self.title,
            headlines=tuple(self.footer[:1]) if self.is_packed else (),
            measures=(size,) if self.is_packed else (),
            layers=tuple(row.record() for row in self.tensors),
            notes=tuple(self.footer[1:]),
            interruption=self.failure if self.problems else None,
        )

    @property
    def table_title(self) -> str:
        """The line above the table."""
        return self.title

    @property
    def rows(self) -> tuple[TensorRow, ...]:
        """The rows of the table."""
        return self.tensors

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table."""
        return TensorRow.columns

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        share = self.packed_bytes / (self.dense_bytes or 1)
        verb = "are" if self.is_packed else "would be"
        lines = [
            f"{self.packed_bytes:,} of {self.dense_bytes:,} bytes {verb} stored ({share:.1%}); "
            f"{format_count(self.others, 'other tensor')} with {self.other_bytes:,} of them, dense."
        ]
        if self.disk_bytes is not None:
            lines.append(f"The files have {self.disk_bytes:,} bytes.")
        negative = sum(row.negative_zeros for row in self.tensors)
        if negative > MAX_NEGATIVE_ZEROS * sum(row.zeros for row in self.tensors):
            lines.append(
                f"Zeros that are -0.0: {negative:,}. They are stored like any other number, to keep every bit; "
                f"weight.add_(0.0) turns them into 0.0 and makes the tensors smaller."
            )
        replaced = {(row.pattern, row.verified_as) for row in self.tensors if row.verified_as is not None}
        lines += [
            f"The zeros of {pattern!r} were verified as {other!r}, because no registered class defines which weights "
            "are pruned together."
            for pattern, other in sorted(replaced, key=str)
        ]
        if self.problems:
            lines.append(f"{format_count(len(self.problems), 'tensor')} failed verification, marked ✗.")
        return lines


def report_on_tensors(
    title: str,
    tensors: Mapping[str, TensorEntry],
    *,
    problems: Mapping[str, str] | None = None,
    disk_bytes: int | None = None,
    is_packed: bool,
) -> ArtifactReport:
    """Report on all tensors: one row for each that has a layout, is packed or has a problem; a total of the others."""
    problems = problems or {}
    listed = {
        name: entry
        for name, entry in tensors.items()
        if entry.layout is not None or entry.packer is not None or name in problems
    }
    return ArtifactReport(
        title=title,
        tensors=tuple(_build_row(name, entry, problems.get(name)) for name, entry in listed.items()),
        others=len(tensors) - len(listed),
        other_bytes=sum(entry.stored_bytes for name, entry in tensors.items() if name not in listed),
        disk_bytes=disk_bytes,
        is_packed=is_packed,
    )


def report_on_artifact(title: str, manifest: Manifest) -> ArtifactReport:
    """Report on an artifact that was just written."""
    disk_bytes = manifest.count_disk_bytes(len(manifest.to_text().encode()))
    return report_on_tensors(title, manifest.tensors, disk_bytes=disk_bytes, is_packed=True)


def _build_row(name: str, entry: TensorEntry, problem: str | None) -> TensorRow:
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
