"""Report which layers of a compiled model were replaced, how fast they are, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from secateur._deprecated import warn_deprecated
from secateur._wording import format_count, format_shape
from secateur.results import Column, LayerRecord, Measure, Record, Report, Row, Summary

__all__ = ["BaselineReport", "LayerReport", "RuntimeReport"]


BFLOAT16_ADVICE = (
    "If that is accurate enough, compile the model in bfloat16, with inputs in bfloat16: sparse kernels may be faster "
    "still. On processors with AMX, prune to 16x1."
)


MAX_LOAD = 1.25
"""Load per processor up to which times are trusted. This process alone causes 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport(Row):
    """The measurements of one layer, and whether it was replaced.

    Attributes:
        name: Name of the layer in the model.
        shape: Shape of the weight as the layer stores it; of the first one if there are several.
        pattern: Pattern of the zeros, or ``None`` if there is none.
        sparsity: Share of weights that are zero, in [0, 1]. Masks and parametrizations are applied.
        rows: Rows that the layer multiplies in one call with the example inputs, or 0 if it is not called.
        dense_seconds: Time of one call of the dense layer, or 0 if it was not measured.
        sparse_seconds: Time of one call of the fastest sparse layer, or ``None`` if there is no sparse layer.
        chosen: ``"dense"``, or the name of the sparse layer that replaces it.
        reason: Why the layer was replaced or stays dense.
        dense_bytes: Size of the dense weight in bytes. A weight that an earlier layer shares is counted only there.
        bytes: Size of the weight in bytes after compilation.
        error: Largest difference from the dense outputs, relative to the largest output, or 0 if the layer is dense.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("layer", "name"),
        Column(">shape", lambda row: row.shape or None, format_shape),
        Column("pattern", "pattern"),
        Column(">sparsity", "sparsity", "{:.1%}"),
        Column(">rows", lambda row: row.rows or None, "{:,}"),
        Column(">dense ms", lambda row: 1e3 * row.dense_seconds or None, "{:.3f}"),
        Column(">sparse ms", lambda row: 1e3 * (row.sparse_seconds or 0) or None, "{:.3f}"),
        Column(">speed-up", lambda row: row.speedup or None, "{:.2f}×"),
        Column(">limit", lambda row: row.limit if row.speedup else None, "{:.1f}×"),
        Column("chosen", "chosen"),
        Column("reason", "reason"),
    )
    computed: ClassVar[tuple[str, ...]] = ("speedup", "limit")

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
    def is_dimmed(self) -> bool:
        """See `Row.is_dimmed`: dense layers."""
        return self.chosen == "dense"

    @property
    def speedup(self) -> float | None:
        """Dense time divided by the time of the fastest sparse layer."""
        return self.dense_seconds / self.sparse_seconds if self.sparse_seconds else None

    def record(self) -> LayerRecord:
        """Return the record of the layer."""
        return LayerRecord(
            name=self.name,
            shape=self.shape or None,
            pattern=self.pattern,
            weights=math.prod(self.shape) if self.shape else None,
            sparsity=self.sparsity,
            rows=self.rows or None,
            call_bytes=self._count_call_bytes(),
            dense_seconds=self.dense_seconds or None,
            sparse_seconds=self.sparse_seconds,
            kernel=self.chosen,
            kernel_reason=self.reason or None,
        )

    def _count_call_bytes(self) -> int | None:
        """Count the bytes of the weight, the inputs and the outputs; ``None``: one of them is unknown."""
        if not self.dense_bytes or not self.rows or len(self.shape) < 2:
            return None
        numbers = math.prod(self.shape) + self.rows * (self.shape[0] + self.shape[1])
        return numbers * self.dense_bytes // math.prod(self.shape)

    @property
    def limit(self) -> float | None:
        """The largest speed-up that skipping zeros can give, or ``None`` if all weights are zero."""
        return 1 / (1 - self.sparsity) if self.sparsity < 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineReport(Record):
    """The time and accuracy of another way to run the dense model.

    Attributes:
        name: What was timed, such as ``"dense bfloat16"`` or ``"torch.compile float32"``.
        dense_seconds: Time of one call of the dense model in the same rounds, or 0 if the baseline was not timed.
        seconds: Time of one call, or ``None`` if it was not timed.
        error: Largest difference from the outputs of the dense model, relative to the largest output, or ``None``.
        reason: Why the baseline was not timed.
    """

    computed: ClassVar[tuple[str, ...]] = ("speedup",)

    name: str
    dense_seconds: float = 0.0
    seconds: float | None = None
    error: float | None = None
    reason: str = ""

    @property
    def speedup(self) -> float | None:
        """Speed-up over the dense model, or ``None`` if the baseline was not timed."""
        return self.dense_seconds / self.seconds if self.seconds else None

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.name} was not timed: {self.reason}"
        outputs = f"outputs differ by {self.error:.1e}" if self.error else "the same outputs"
        return f"{self.name} {1e3 * self.seconds:.2f} ms ({self.speedup:.2f}×, {outputs})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RuntimeReport(Report):
    """The result of `secateur.runtime.compile`.

    Attributes:
        layers: All layers with a weight, in the order of the model.
        threads: Number of threads used.
        device: Device of the layers.
        dense_seconds: Time of one call of the dense model.
        seconds: Time of one call of the compiled model.
        cuda_graphs: Whether layers were timed in CUDA graphs. The model as a whole never is.
        error: Largest difference of the outputs from those of the dense model, relative to the largest output.
        baselines: Other ways to run the dense model on this machine, with their time and accuracy.
        load: Load average of the machine per processor; above 1 if programs wait for one another.
    """

    computed: ClassVar[tuple[str, ...]] = ("replaced", "speedup")
    width: ClassVar[int] = 160

    layers: tuple[LayerReport, ...]
    threads: int
    device: str
    dense_seconds: float
    seconds: float
    cuda_graphs: bool = False
    error: float = 0.0
    baselines: tuple[BaselineReport, ...] = ()
    load: float = 0.0

    @property
    def replaced(self) -> int:
        """Number of layers that were replaced."""
        return sum(layer.chosen != "dense" for layer in self.layers)

    @property
    def exchanged(self) -> int:
        """Deprecated name of `replaced`."""
        warn_deprecated("RuntimeReport.exchanged", "RuntimeReport.replaced")
        return self.replaced

    @property
    def speedup(self) -> float:
        """Speed-up of one call of the whole model."""
        return self.dense_seconds / self.seconds if self.seconds else 1.0

    @property
    def table_title(self) -> str:
        """The line above the table."""
        return "Runtime"

    @property
    def rows(self) -> tuple[LayerReport, ...]:
        """The rows of the table."""
        return self.layers

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table."""
        return LayerReport.columns

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        dense_bytes = sum(layer.dense_bytes for layer in self.layers)
        total_bytes = sum(layer.bytes for layer in self.layers)
        share = total_bytes / dense_bytes if dense_bytes else 1.0
        call = "One call of the model"
        if self.cuda_graphs:
            call = "Layers were timed in CUDA graphs, without Python's overhead. One call of the model without a graph"
        difference = f", outputs differ by {self.error:.1e}" if self.error else ""
        lines = [
            f"{self.replaced} of {format_count(len(self.layers), 'layer')} replaced; their weights take "
            f"{total_bytes:,} of {dense_bytes:,} bytes ({share:.1%}).",
            f"{call}: {1e3 * self.dense_seconds:.2f} ms dense, {1e3 * self.seconds:.2f} ms now "
            f"({self.speedup:.2f}×{difference}), on {self.device} with {format_count(self.threads, 'thread')}.",
        ]
        if self.baselines:
            lines.append(f"Without sparse kernels: {'; '.join(map(str, self.baselines))}.")
            lines.append(f"Fastest: {'; '.join(self._list_fastest())}.")
        if any((baseline.speedup or 0) > self.speedup for baseline in self.baselines if "bfloat16" in baseline.name):
            lines.append(BFLOAT16_ADVICE)
        return [*lines, *self._list_warnings()]

    def _list_warnings(self) -> tuple[str, ...]:
        """List reasons why the times may mislead."""
        if self.load <= MAX_LOAD:
            return ()
        return (
            f"These times are unreliable: other programs use the processor (load average {self.load:.1f} per "
            f"processor), and threads wait for them. Compile again on a quiet machine, or with fewer threads.",
        )

    def summarize(self) -> Summary:
        """Return the times of the model and of its layers, and why each kernel was chosen."""
        return Summary(
            title=self.table_title,
            headlines=tuple(self.footer[:1]),
            facts={"Runtime": f"{self.device} with {format_count(self.threads, 'thread')}"},
            measures=tuple(self._measure()),
            layers=tuple(layer.record() for layer in self.layers),
            warnings=(warnings := self._list_warnings()),
            notes=tuple(line for line in self.footer[1:] if line not in warnings),
        )

    def _measure(self) -> Iterator[Measure]:
        """Yield the time of the model, that of other ways to run it, and the size of its weights."""
        if self.seconds:
            name = "one call of the model"
            yield Measure(quantity="speed", name=name, unit="seconds", dense=self.dense_seconds, present=self.seconds)
        for baseline in self.baselines:
            if baseline.seconds:
                yield Measure(
                    quantity="other",
                    name=f"one call, {baseline.name}",
                    unit="seconds",
                    dense=baseline.dense_seconds,
                    present=baseline.seconds,
                )
        dense, present = (sum(getattr(layer, name) for layer in self.layers) for name in ("dense_bytes", "bytes"))
        yield Measure(quantity="size", name="weights in memory", unit="bytes", dense=dense, present=present)

    def _list_fastest(self) -> list[str]:
        """List the fastest option, then the fastest of those with smaller errors, and so on."""
        ways = [("the dense model", 1.0, 0.0)]
        if self.replaced:
            ways.append(("this model", self.speedup, self.error))
        ways += [
            (baseline.name, baseline.speedup, baseline.error)
            for baseline in self.baselines
            if baseline.speedup is not None and baseline.error is not None
        ]
        lines: list[str] = []
        smallest = float("inf")
        for name, speedup, error in sorted(ways, key=lambda way: (-way[1], way[2])):
            if error < smallest:
                lines.append(f"{name}, {speedup:.2f}× {f'with a difference of {error:.1e}' if error else 'exactly'}")
                smallest = error
        return lines
