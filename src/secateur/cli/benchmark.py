"""Benchmark a pruned or slim model against the dense one, for ``secateur bench``."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from secateur._progress import ProgressDisplay
from secateur._wording import format_count
from secateur.artifact import Artifact, convert, load
from secateur.cli.prune_job import count_bytes
from secateur.errors import CalibrationError, ConfigError, MissingPackageError, UnsupportedModelError
from secateur.frameworks import detect_framework
from secateur.models import find_artifact_path, load_model, load_trained
from secateur.models.trials import make_trial
from secateur.results import Column, Measure, Report, Row, Summary
from secateur.runtime import RuntimeReport

__all__ = ["Benchmark", "BenchmarkReport", "Measurement", "measure_medians"]

WITHOUT_RUNTIME = (
    "Without the runtime, a pruned model is as slow as the dense one, because zeros are multiplied too; a ratio other "
    "than 1 is noise."
)

NO_RUNTIME = "The runtime was not benchmarked: {}"

LOADING = (
    "Both models are loaded with secateur.load, which verifies the checksum of every tensor. Their files are cached."
)

NO_MODEL = (
    "Loading and the forward pass were not timed, because the artifact does not say how to build the model. Pass "
    "--model package.module:name."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Row):
    """One quantity, measured for the dense and for the pruned model.

    Attributes:
        name: Name of the quantity.
        unit: Unit of both values, ``"bytes"`` or ``"seconds"``.
        dense: Value of the dense model.
        pruned: Value of the pruned model.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("measure", "name"),
        Column(">dense", lambda row: row.format_value(row.dense)),
        Column(">pruned", lambda row: row.format_value(row.pruned)),
        Column(">dense ÷ pruned", "ratio", "{:.2f}"),
    )
    computed: ClassVar[tuple[str, ...]] = ("ratio",)

    name: str
    unit: str
    dense: float
    pruned: float

    @property
    def ratio(self) -> float:
        """Dense value divided by pruned value: the factor by which the pruned model is better."""
        return self.dense / self.pruned if self.pruned else float("inf")

    def record(self, forward: Sequence[str]) -> Measure:
        """Return the record of the measurement.

        Args:
            forward: Names of all measurements of the forward pass; the last one says how fast the model can be run.
        """
        is_fastest = bool(forward) and self.name == forward[-1]
        return Measure(
            quantity="size" if self.unit == "bytes" else "speed" if is_fastest else "other",
            name=self.name,
            unit=self.unit,
            dense=self.dense,
            present=self.pruned,
        )

    def format_value(self, value: float) -> str:
        """Format a value with its unit."""
        return f"{value:,.0f} bytes" if self.unit == "bytes" else f"{1000 * value:,.2f} ms"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BenchmarkReport(Report):
    """The result of a benchmark.

    Attributes:
        path: The artifact or the model, as given by the user; of two models, the dense one.
        machine: Processor and number of cores.
        rounds: Number of times that each call was timed.
        measures: The measurements, one per row.
        notes: Explanations of the measurements.
        runtime: The report of `secateur.runtime.compile`; ``None`` if the runtime was not benchmarked.
        slim: The slim model that was compared with the dense one, as given by the user; ``None``: there is none.
    """

    path: str
    machine: str
    rounds: int
    measures: tuple[Measurement, ...]
    notes: tuple[str, ...]
    runtime: RuntimeReport | None = None
    slim: str | None = None

    def summarize(self) -> Summary:
        """Return the measurements, and those of the layers if the runtime was benchmarked."""
        forward = [row.name for row in self.measures if row.name.startswith("forward")]
        summary = Summary(
            title=self.table_title,
            headlines=(self.footer[0],),
            facts={"Benchmarked on": self.machine},
            measures=tuple(row.record(forward) for row in self.measures),
            notes=self.notes,
        )
        return summary if self.runtime is None else summary.join(self.runtime.summarize())

    @property
    def kind(self) -> str:
        """The kind of the model that is compared with the dense one: ``"pruned"`` or ``"slim"``."""
        return "pruned" if self.slim is None else "slim"

    @property
    def table_title(self) -> str:
        """The line above the table."""
        return f"Dense and {self.kind}: {self.path}{'' if self.slim is None else f' and {self.slim}'}"

    @property
    def rows(self) -> tuple[Measurement, ...]:
        """The rows of the table."""
        return self.measures

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table."""
        columns = Measurement.columns
        return tuple(replace(column, heading=column.heading.replace("pruned", self.kind)) for column in columns)

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        return [
            f"Medians of {format_count(self.rounds, 'round')}, dense and {self.kind} in turn, on {self.machine}.",
            *self.notes,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """The arguments of one call of ``secateur bench``.

    Attributes:
        reference: Folder of an artifact, or a model in any form that `load_trained` accepts.
        model: Code that builds the model of an artifact, in a form that `load_model` accepts.
        inputs: File with inputs; random inputs by default.
        batch: Number of examples per batch.
        length: Number of tokens per example.
        rounds: Number of timed rounds.
        device: Device to run the model on; by default, the one it is built on.
        slim: A slim model, in the same forms as `reference`, which then is the dense one; ``None``: `reference` is
            pruned, and is compared with a copy without its zeros.
    """

    reference: str
    model: str | None
    inputs: Path | None
    batch: int
    length: int
    rounds: int
    device: str | None = None
    slim: str | None = None

    def run(self, steps: ProgressDisplay) -> BenchmarkReport:
        """Run all measurements.

        Raises:
            SecateurError: The artifact is damaged, or its model cannot be built.
        """
        notes: list[str] = []
        runtime = None
        if self.slim is not None:
            measures = self._compare(self.slim, steps, notes)
        else:
            path = find_artifact_path(self.reference)
            measures, build = self._measure_artifact(path, steps, notes) if path else ([], self._load_trained)
            if build is not None:
                steps.begin("Running")
                forward, runtime = self._measure_forward(build, notes)
                measures += forward
        machine = f"{platform.processor() or platform.machine()}, {format_count(os.cpu_count() or 1, 'core')}"
        return BenchmarkReport(
            path=self.reference,
            machine=machine,
            rounds=self.rounds,
            measures=tuple(measures),
            notes=tuple(notes),
            runtime=runtime,
            slim=self.slim,
        )

    def _compare(self, slim: str, steps: ProgressDisplay, notes: list[str]) -> list[Measurement]:
        """Measure the weights and the forward pass of two models."""
        paths = {reference: find_artifact_path(reference) for reference in (self.reference, slim)}
        if self.model is not None and not any(paths.values()):
            raise ConfigError(
                f"--model is for artifacts, and neither {self.reference!r} nor {slim!r} is one. Leave it out."
            )
        models = []
        for reference, path in paths.items():
            steps.begin(f"Reading {reference}")
            models.append(load_trained(reference).model if path is None else self._load(path))
        dense, slimmed = models[0], models[-1]
        frameworks = [detect_framework(dense), detect_framework(slimmed)]
        if frameworks[0] != frameworks[1]:
            raise ConfigError(
                f"Both models must be of the same framework, found {frameworks[0]} for {self.reference!r} and "
                f"{frameworks[1]} for {slim!r}."
            )
        measures = [
            Measurement(name="weights", unit="bytes", dense=count_bytes(dense), pruned=count_bytes(slimmed)),
        ]
        steps.begin("Running")
        try:
            trial_run = make_trial(slimmed, self.inputs, self.batch, self.length, self.device, dense)
            calls = {"dense": trial_run.dense, "pruned": trial_run.pruned}
            return [*measures, self._time(f"forward pass, {trial_run.inputs}", calls)]
        except CalibrationError as error:
            notes.append(f"The forward pass was not timed: {error}")
            return measures

    def _measure_artifact(
        self, path: Path, steps: ProgressDisplay, notes: list[str]
    ) -> tuple[list[Measurement], Callable[[], Any] | None]:
        """Measure size and loading time of an artifact; also return a function that builds its model, if any."""
        with TemporaryDirectory(prefix="secateur-") as folder:
            dense = Path(folder, "dense")
            steps.begin("Writing a dense copy")
            convert(path, dense, dense=True)
            measures = [
                Measurement(name="tensors on disk", unit="bytes", dense=_count_bytes(dense), pruned=_count_bytes(path))
            ]
            if self.model is None and not _is_buildable(path):
                notes.append(NO_MODEL)
                return measures, None
            steps.begin("Loading")
            calls = {"dense": partial(self._load, dense), "pruned": partial(self._load, path)}
            measures.append(self._time("load the model", calls))
            notes.append(LOADING)
        return measures, calls["pruned"]

    def _load_trained(self) -> Any:
        """Load a trained model that is not an artifact."""
        if self.model is not None:
            raise ConfigError(f"--model is for artifacts, and {self.reference!r} is not one. Leave it out.")
        return load_trained(self.reference).model

    def _load(self, path: Path) -> Any:
        return load(path) if self.model is None else load(path, load_model(self.model))

    def _measure_forward(
        self, build: Callable[[], Any], notes: list[str]
    ) -> tuple[Sequence[Measurement], RuntimeReport | None]:
        """Measure the forward pass without and with the runtime."""
        try:
            trial_run = make_trial(build(), self.inputs, self.batch, self.length, self.device)
        except CalibrationError as error:
            notes.append(f"The forward pass was not timed: {error}")
            return (), None
        notes.append(WITHOUT_RUNTIME)
        name = f"forward pass, {trial_run.inputs}"
        measures = [self._time(name, {"dense": trial_run.dense, "pruned": trial_run.pruned})]
        try:
            compiled = trial_run.compile()
        except (MissingPackageError, UnsupportedModelError) as error:
            notes.append(NO_RUNTIME.format(error))
            return measures, None
        measures.append(self._time(f"{name}, runtime", {"dense": trial_run.dense, "pruned": compiled.call}))
        return measures, compiled.report

    def _time(self, name: str, calls: Mapping[str, Callable[[], object]]) -> Measurement:
        return Measurement(name=name, unit="seconds", **measure_medians(calls, self.rounds))


def measure_medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Measure the median time of each call in seconds; calls take turns, after one warm-up each."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}


def _is_buildable(path: Path) -> bool:
    """Whether the model can be built from the artifact alone."""
    builder = Artifact(path).manifest.model
    return builder is not None and builder.kind != "code"


def _count_bytes(folder: Path) -> int:
    """Count the bytes of an artifact's tensors on disk."""
    return sum((folder / name).stat().st_size for name in Artifact(folder).manifest.shards)
