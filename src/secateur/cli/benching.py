"""What a pruned model gains, measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from secateur._table import Table
from secateur._wording import format_count
from secateur.artifact import Artifact, convert, load
from secateur.cli.progress import Steps
from secateur.errors import CalibrationError, ConfigError, MissingPackageError, UnsupportedModelError
from secateur.models import artifact_path, load_model, load_trained
from secateur.models.running import trial
from secateur.runtime import RuntimeReport

__all__ = ["Bench", "BenchReport", "Measure", "medians"]

WITHOUT_RUNTIME = (
    "Run as it is, a pruned model takes as long as the dense one: its zeros are multiplied too, and a ratio other than "
    "1 is noise."
)

NO_RUNTIME = "The runtime was not tried: {}"

LOADING = "Both are loaded by secateur.load, which proves every tensor by its checksum, from files that were just read."

NO_MODEL = (
    "Neither loading nor the forward pass was timed, for only code can build the model: give it with --model "
    "package.module:name."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One thing measured, dense and pruned.

    Attributes:
        name: What.
        unit: Of both values: ``"bytes"`` or ``"seconds"``.
        dense: The dense model's.
        pruned: The pruned model's.
    """

    name: str
    unit: str
    dense: float
    pruned: float

    @property
    def ratio(self) -> float:
        """Dense by pruned: how many times better the pruned one is."""
        return self.dense / self.pruned if self.pruned else float("inf")

    def cells(self) -> tuple[str, ...]:
        """The row as a person reads it."""
        return self.name, self._shown(self.dense), self._shown(self.pruned), f"{self.ratio:.2f}"

    def _shown(self, value: float) -> str:
        return f"{value:,.0f} bytes" if self.unit == "bytes" else f"{1000 * value:,.2f} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """What was measured.

    Attributes:
        path: The artifact, or what the model was made of.
        machine: What it was measured on.
        rounds: How often.
        measures: One per row.
        notes: What to know about them.
        runtime: What the runtime made of each layer; ``None``: it was not tried.
    """

    path: str
    machine: str
    rounds: int
    measures: tuple[Measure, ...]
    notes: tuple[str, ...]
    runtime: RuntimeReport | None = None

    def table(self) -> Table:
        """The report for a person."""
        return Table(
            title=f"Dense and pruned: {self.path}",
            columns=("measure", ">dense", ">pruned", ">dense ÷ pruned"),
            rows=[measure.cells() for measure in self.measures],
            footer=[
                f"Medians of {format_count(self.rounds, 'round')}, taken in turns, on {self.machine}.",
                *self.notes,
            ],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        rows = [
            {"name": one.name, "unit": one.unit, "dense": one.dense, "pruned": one.pruned, "ratio": one.ratio}
            for one in self.measures
        ]
        plain = {"path": self.path, "machine": self.machine, "rounds": self.rounds}
        runtime = None if self.runtime is None else self.runtime.to_dict()
        return plain | {"measures": rows, "notes": list(self.notes), "runtime": runtime}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One call of ``secateur bench``.

    Attributes:
        reference: The artifact's folder, or what `load_trained` makes a model of.
        model: What `load_model` makes a model of, for an artifact that cannot be built otherwise.
        inputs: A file of inputs; ``None``: random ones.
        batch: Examples.
        length: Tokens in each.
        rounds: How often each is timed.
        device: Where the model works; ``None``: where it is built.
    """

    reference: str
    model: str | None
    inputs: Path | None
    batch: int
    length: int
    rounds: int
    device: str | None = None

    def run(self, steps: Steps) -> BenchReport:
        """Measure.

        Raises:
            SecateurError: The artifact is damaged, or its model cannot be built.
        """
        notes: list[str] = []
        path = artifact_path(self.reference)
        measures, build = self._artifact(path, steps, notes) if path is not None else ([], self._trained)
        runtime = None
        if build is not None:
            steps.begin("Running")
            forward, runtime = self._forward(build, notes)
            measures += forward
        machine = f"{platform.processor() or platform.machine()}, {format_count(os.cpu_count() or 1, 'core')}"
        return BenchReport(
            path=self.reference,
            machine=machine,
            rounds=self.rounds,
            measures=tuple(measures),
            notes=tuple(notes),
            runtime=runtime,
        )

    def _artifact(self, path: Path, steps: Steps, notes: list[str]) -> tuple[list[Measure], Callable[[], Any] | None]:
        """Bytes and loading of an artifact, and what builds its model, if anything can."""
        with TemporaryDirectory(prefix="secateur-") as folder:
            dense = Path(folder, "dense")
            steps.begin("Writing a dense copy")
            convert(path, dense, dense=True)
            measures = [Measure(name="tensors on disk", unit="bytes", dense=_bytes(dense), pruned=_bytes(path))]
            if self.model is None and not _can_be_built(path):
                notes.append(NO_MODEL)
                return measures, None
            steps.begin("Loading")
            calls = {"dense": partial(self._load, dense), "pruned": partial(self._load, path)}
            measures.append(self._timed("load the model", calls))
            notes.append(LOADING)
        return measures, calls["pruned"]

    def _trained(self) -> Any:
        """The model, where it is no artifact."""
        if self.model is not None:
            raise ConfigError(f"--model goes with an artifact, and {self.reference!r} is none. Leave it out.")
        return load_trained(self.reference).model

    def _load(self, path: Path) -> Any:
        return load(path) if self.model is None else load(path, load_model(self.model))

    def _forward(self, build: Callable[[], Any], notes: list[str]) -> tuple[Sequence[Measure], RuntimeReport | None]:
        """The forward pass, unchanged and compiled."""
        try:
            made = trial(build(), self.inputs, self.batch, self.length, self.device)
        except CalibrationError as error:
            notes.append(f"The forward pass was not timed: {error}")
            return (), None
        notes.append(WITHOUT_RUNTIME)
        name = f"forward pass, {made.inputs}"
        measures = [self._timed(name, {"dense": made.dense, "pruned": made.pruned})]
        try:
            compiled = made.compile()
        except (MissingPackageError, UnsupportedModelError) as error:
            notes.append(NO_RUNTIME.format(error))
            return measures, None
        measures.append(self._timed(f"{name}, runtime", {"dense": made.dense, "pruned": compiled.call}))
        return measures, compiled.report

    def _timed(self, name: str, calls: Mapping[str, Callable[[], object]]) -> Measure:
        return Measure(name=name, unit="seconds", **medians(calls, self.rounds))


def medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, timed in turns after one call that does not count."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in seconds.items()}


def _can_be_built(path: Path) -> bool:
    """Whether the artifact says itself how its model is built."""
    builder = Artifact(path).manifest.model
    return builder is not None and builder.kind != "code"


def _bytes(folder: Path) -> int:
    """Bytes of an artifact's tensors on disk."""
    return sum((folder / name).stat().st_size for name in Artifact(folder).manifest.shards)
