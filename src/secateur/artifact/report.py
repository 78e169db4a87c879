"""What an artifact holds, for a person and for machines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from secateur._table import Table
from secateur._wording import format_count

__all__ = ["ArtifactReport", "TensorRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One tensor.

    Attributes:
        name: Its name.
        layer: The layer that it is the weight of; ``None``: of none that pruning would or did prune.
        shape: Its shape.
        dtype: Type of its numbers, such as ``"BF16"``.
        pattern: The pattern that its zeros have: what pruning was asked for, or the strictest that is worth packing;
            ``None``: none.
        zeros: Numbers that are zero.
        negative_zeros: Of these, those that are ``-0.0``, which packings store like any other number.
        dense_bytes: Bytes when dense.
        packed_bytes: Bytes as packed.
        packing: How it is packed, ``"dense"`` if it is not.
        problem: What is wrong with it; ``None``: nothing was found.
    """

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

    @property
    def count(self) -> int:
        """Numbers in it."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def sparsity(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.count if self.count else 0.0

    def cells(self) -> tuple[str, ...]:
        """The row as a person reads it."""
        share = self.packed_bytes / self.dense_bytes if self.dense_bytes else 1.0
        return (
            self.name,
            "×".join(map(str, self.shape)),
            self.dtype,
            self.pattern or "",
            f"{self.sparsity:.2%}",
            f"{self.dense_bytes:,}",
            f"{self.packed_bytes:,}",
            f"{share:.3f}",
            self.packing if self.problem is None else f"✗ {self.problem}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactReport:
    """Every tensor of a saved model, or of one that could be saved.

    Attributes:
        title: What it is.
        tensors: The tensors that are the weight of a layer, and all that are packed.
        others: How many more there are.
        other_bytes: Their bytes.
        disk_bytes: Bytes of the files; ``None``: there are none.
        is_packed: Whether the packed bytes are those of the files, rather than what packing would make of them.
    """

    title: str
    tensors: tuple[TensorRow, ...]
    others: int
    other_bytes: int
    disk_bytes: int | None
    is_packed: bool

    @property
    def problems(self) -> dict[str, str]:
        """Tensor → what is wrong with it."""
        return {row.name: row.problem for row in self.tensors if row.problem is not None}

    @property
    def failure(self) -> str:
        """The problems, as the message of an error."""
        lines = "".join(f"\n  {name}: {problem}" for name, problem in self.problems.items())
        return f"{self.title}: {format_count(len(self.problems), 'tensor')} failed verification:{lines}"

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors when dense."""
        return self.other_bytes + sum(row.dense_bytes for row in self.tensors)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all tensors as packed."""
        return self.other_bytes + sum(row.packed_bytes for row in self.tensors)

    def table(self) -> Table:
        """The report for a person."""
        columns = ("tensor", ">shape", "type", "pattern", ">zeros", ">bytes dense", ">packed", ">share", "packing")
        dimmed = frozenset(
            index for index, row in enumerate(self.tensors) if row.packing == "dense" and not row.problem
        )
        return Table(
            title=self.title,
            columns=columns,
            rows=[row.cells() for row in self.tensors],
            dimmed=dimmed,
            footer=self._footer(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        totals = {"dense_bytes": self.dense_bytes, "packed_bytes": self.packed_bytes, "problems": self.problems}
        rows = [asdict(row) | {"sparsity": row.sparsity} for row in self.tensors]
        return asdict(self) | totals | {"tensors": rows}

    def __str__(self) -> str:
        return self.table().text()

    def _footer(self) -> list[str]:
        whole = self.dense_bytes or 1
        verb = "are" if self.is_packed else "would be"
        lines = [
            f"{self.packed_bytes:,} of {self.dense_bytes:,} bytes {verb} stored ({self.packed_bytes / whole:.1%}); "
            f"{format_count(self.others, 'other tensor')} with {self.other_bytes:,} of them, dense."
        ]
        if self.disk_bytes is not None:
            lines.append(f"The files have {self.disk_bytes:,} bytes.")
        if negative := sum(row.negative_zeros for row in self.tensors):
            lines.append(
                f"Zeros that are -0.0: {negative:,}. They are stored like any other number, so that every bit stays as "
                f"it is; weight.add_(0.0) would make them 0.0, and the tensors smaller."
            )
        if self.problems:
            lines.append(f"{format_count(len(self.problems), 'tensor')} failed verification, marked ✗.")
        return lines
