"""Load, prune, slim and save a model, for ``secateur slim``."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from secateur._progress import ProgressDisplay
from secateur._table import Table
from secateur._wording import format_count, format_reasons
from secateur.cli.calibration_options import CalibrationOptions
from secateur.cli.destination import Destination
from secateur.cli.messages import say
from secateur.cli.prune_job import count_bytes
from secateur.cli.slim_mode import SlimMode
from secateur.cli.tracing import trace_model
from secateur.config import ConfigLike, PruningConfig
from secateur.errors import LayerError
from secateur.frameworks import detect_framework
from secateur.models import TrainedModel, load_trained
from secateur.results import Measure, Summarizable, Summary
from secateur.slimming import SlimReport, slim

__all__ = ["SlimJob", "SlimMethod", "SlimResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimResult(Summarizable):
    """The result of a call of ``secateur slim``.

    Attributes:
        report: What was removed.
        path: The folder.
        bytes_before: Bytes of the parameters before.
        bytes: Bytes of the parameters after.
        load: Python code that loads the model.
    """

    report: SlimReport
    path: str
    bytes_before: int
    bytes: int
    load: str

    def table(self) -> Table:
        """Return the report as a table."""
        return self.report.table()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        more = {"path": self.path, "bytes_before": self.bytes_before, "bytes": self.bytes, "load": self.load}
        return self.report.to_dict() | more

    def summarize(self) -> Summary:
        """Return what was removed, and how large the model is now."""
        size = Measure(quantity="size", name="weights", unit="bytes", dense=self.bytes_before, present=self.bytes)
        written = Summary(title=self.path, measures=(size,), notes=tuple(self.describe()))
        return written.join(self.report.summarize())

    def describe(self) -> list[str]:
        """Return the lines below the table of the report."""
        change = self.bytes / self.bytes_before - 1
        return [
            f"Written to {self.path}: {self.bytes:,} bytes of weights, {self.bytes_before:,} before ({change:.1%}).",
            f"Load it with: {self.load}",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimMethod:
    """How to prune with calibration data.

    Attributes:
        solver: Name of the solver; ``None``: the default.
        refine: Names of the refiners, in order.
        budget: How much may remain; ``None``: the target of the configuration applies.
    """

    solver: str | None
    refine: tuple[str, ...]
    budget: dict[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimJob:
    """The arguments of one call of ``secateur slim``.

    Attributes:
        model: The model, in a form that `load_trained` accepts.
        weights: File with its weights.
        settings: How to prune it; ``None``: only remove units that are already zero, or consider all units for a
            budget.
        method: How to prune with calibration data; ``None``: by the configured criterion, without data.
        data: The options for calibration data. Example inputs also come from its file; they are random if there is
            none.
        mode: Which zero units are removed.
        target: The output folder.
    """

    model: str
    weights: Path | None
    settings: ConfigLike | None
    method: SlimMethod | None
    data: CalibrationOptions
    mode: SlimMode
    target: Destination

    def run(self, steps: ProgressDisplay) -> SlimResult:
        """Run the job.

        Raises:
            SecateurError: The job failed, or no unit can be removed. No files have changed.
        """
        from secateur.artifact import save

        self.target.check()
        steps.begin(f"Reading {self.model}")
        trained = load_trained(self.model, self.weights)
        model, companions, before = trained.model, trained.companions, count_bytes(trained.model)
        self.target.check_space(before)
        with nullcontext() if self.method is None else self.target.open_parts() as folder:
            with _convert_float16(model):
                report = self._prune_and_slim(trained, steps, folder)
            if not report.removed_units:
                raise LayerError(self._explain_unchanged(report))
            model = model if report.model is None else report.model  # a Keras model is built again
            steps.begin(f"Writing {self.target.out}")
            save(model, self.target.out, tokenizer=companions, dense=True)
        return SlimResult(
            report=report,
            path=str(self.target.out),
            bytes_before=before,
            bytes=count_bytes(model),
            load=self._write_code(model),
        )

    def _prune_and_slim(self, trained: TrainedModel, steps: ProgressDisplay, folder: Path | None) -> SlimReport:
        steps.begin(f"Tracing {self.model}")
        inputs, graph = trace_model(trained, self.data.file)
        options: dict[str, Any] = {}
        if self.method is not None:
            assert folder is not None
            options |= {
                "calibration": self.data.load_batches(trained),
                "execution": self.data.make_execution(steps, folder),
                "solver": self.method.solver,
                "refine": self.method.refine,
                "budget": self.method.budget,
            }
        steps.begin(f"Slimming {self.model}")
        report = slim(
            trained.model,
            self.settings,
            example_inputs=inputs,
            graph=graph,
            allow_inexact=isinstance(self.settings, PruningConfig) and self.settings.allow_inexact,
            mode=self.mode.value,
            **options,
        )
        if report.pruning is not None:
            say(report.pruning.footer[0])
        return report

    def _explain_unchanged(self, report: SlimReport) -> str:
        """Explain why no unit can be removed."""
        if stuck := [group for group in report.groups if group.zero_units]:
            reasons = format_reasons((group.name, group.reason) for group in stuck)
            return f"Nothing was removed from {self.model!r}. Zero units were kept for these reasons:\n{reasons}"
        count = format_count(len(report.groups), "group")
        return (
            f"Nothing can be removed from {self.model!r}, because no unit of its {count} is zero. To prune it first, "
            f"add --pattern channels and --target-sparsity."
        )

    def _write_code(self, model: Any) -> str:
        """Return code that loads the saved model: without Secateur where a configuration describes its sizes."""
        from secateur.artifact import Artifact

        manifest, folder = Artifact(self.target.out).manifest, str(self.target.out)
        if manifest.model is not None and manifest.model.kind != "code":
            is_plain = manifest.model.framework == "pytorch" and not manifest.is_slimmed
            return f"transformers.{type(model).__name__}.from_pretrained({folder!r})" if is_plain else _load(folder)
        module, colon, name = self.model.partition(":")
        if not colon:
            return _load(folder, "model")
        is_model = attrgetter(name)(sys.modules[module]) is model if module in sys.modules else False
        return _load(folder, f"{module}.{name}{'' if is_model else '()'}")


def _convert_float16(model: Any) -> AbstractContextManager[None]:
    """Compute in float32 with a torch model in float16."""
    if detect_framework(model) == "keras":
        return nullcontext()
    from secateur.models.pytorch.float16 import convert_float16

    return convert_float16(model)


def _load(folder: str, model: str = "") -> str:
    return f"secateur.load({folder!r}{', ' if model else ''}{model})"
