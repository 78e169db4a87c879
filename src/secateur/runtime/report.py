"""What became of each layer, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from secateur._table import Table
from secateur._wording import format_count

__all__ = ["LayerRow", "RuntimeReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer.

    Attributes:
        name: Its name in the model.
        shape: Its weight as stored.
        pattern: The pattern that its zeros have; ``None``: none.
        sparsity: Share of its weights that are zero, in [0, 1].
        rows: Rows that it multiplies in one call with the example inputs; 0: it was not called.
        dense_seconds: Time of such a call as it was; 0: not measured.
        sparse_seconds: Time of the fastest other way; ``None``: there is none.
        chosen: What it is now: ``"dense"``, or the name of the other way.
        reason: Why.
        dense_bytes: Bytes of its weight before.
        bytes: Bytes of its weight now.
        error: Largest difference of its outputs from the dense ones, over the largest of these; 0 where it is dense.
    """

    name: str
    shape: tuple[int, ...]
    pattern: str | None
    sparsity: float
    rows: int = 0
    dense_seconds: float = 0.0
    sparse_seconds: float | None = None
    chosen: str = "dense"
    reason: str = ""
    dense_bytes: int = 0
    bytes: int = 0
    error: float = 0.0

    @property
    def speedup(self) -> float | None:
        """Dense time over the time of the fastest other way."""
        return self.dense_seconds / self.sparse_seconds if self.sparse_seconds else None

    @property
    def limit(self) -> float | None:
        """The speed-up that leaving out the zeros cannot exceed; ``None``: nothing is left."""
        return 1 / (1 - self.sparsity) if self.sparsity < 1 else None

    def cells(self) -> tuple[str, ...]:
        """The row as a person reads it."""
        return (
            self.name,
            "×".join(map(str, self.shape)),
            self.pattern or "",
            f"{self.sparsity:.1%}",
            f"{self.rows:,}" if self.rows else "",
            f"{1e3 * self.dense_seconds:.3f}" if self.dense_seconds else "",
            f"{1e3 * self.sparse_seconds:.3f}" if self.sparse_seconds else "",
            f"{self.speedup:.2f}×" if self.speedup else "",
            f"{self.limit:.1f}×" if self.speedup and self.limit else "",
            self.chosen,
            self.reason,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReport:
    """What `compile` did.

    Attributes:
        layers: Every layer that could have been exchanged, in the model's order.
        threads: Threads that were used.
        device: Where the layers are.
        dense_seconds: Time of one call of the whole model before.
        seconds: The same afterwards.
        cuda_graphs: Whether times of layers are of calls in a CUDA graph; those of the model never are.
    """

    layers: tuple[LayerRow, ...]
    threads: int
    device: str
    dense_seconds: float
    seconds: float
    cuda_graphs: bool = False

    @property
    def exchanged(self) -> int:
        """Layers that are not dense any more."""
        return sum(row.chosen != "dense" for row in self.layers)

    @property
    def speedup(self) -> float:
        """Of one call of the whole model."""
        return self.dense_seconds / self.seconds if self.seconds else 1.0

    def table(self) -> Table:
        """The report for a person."""
        times = (">dense ms", ">sparse ms", ">gain", ">limit")
        columns = ("layer", ">shape", "pattern", ">zeros", ">rows", *times, "chosen", "why")
        return Table(
            title="Runtime",
            columns=columns,
            rows=[row.cells() for row in self.layers],
            dimmed=frozenset(index for index, row in enumerate(self.layers) if row.chosen == "dense"),
            footer=self._footer(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        rows = [asdict(row) | {"speedup": row.speedup, "limit": row.limit} for row in self.layers]
        return asdict(self) | {"layers": rows, "exchanged": self.exchanged, "speedup": self.speedup}

    def __str__(self) -> str:
        return self.table().text(160)

    def _footer(self) -> list[str]:
        dense, now = (sum(getattr(row, name) for row in self.layers) for name in ("dense_bytes", "bytes"))
        share = now / dense if dense else 1.0
        calls = "One call of the model"
        if self.cuda_graphs:
            calls = "Times of layers are of CUDA graphs, without Python. One call of the model without a graph"
        return [
            f"{self.exchanged} of {format_count(len(self.layers), 'layer')} exchanged; their weights take {now:,} of "
            f"{dense:,} bytes ({share:.1%}).",
            f"{calls}: {1e3 * self.dense_seconds:.2f} ms dense, {1e3 * self.seconds:.2f} ms now "
            f"({self.speedup:.2f}×), on {self.device} with {format_count(self.threads, 'thread')}.",
        ]
