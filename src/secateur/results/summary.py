"""The summary that all reports share: it can be joined with others, and written as a page or a data frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from secateur.config import PruningConfig
from secateur.results.data_frame import make_data_frame
from secateur.results.layer_record import LayerRecord, join_layers
from secateur.results.records import Record
from secateur.results.search_summary import SearchSummary
from secateur.results.sensitivity_map import SensitivityMap

__all__ = ["FORMAT_VERSION", "Measure", "Summarizable", "Summary", "UnitGroupRecord", "describe_config"]

FORMAT_VERSION = 1
"""Version of what ``to_dict`` returns. Keys may be added in a version, but never change their meaning."""

Quantity = Literal["size", "speed", "quality", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure(Record):
    """A quantity of the dense model and of the present one.

    Attributes:
        quantity: What it measures. The verdict shows the first measure of each quantity except ``"other"``.
        name: What was measured.
        unit: ``"bytes"``, ``"seconds"``, ``"parameters"``, or any other; ``""`` if it has none.
        dense: Value of the dense model.
        present: Value of the pruned, slim or compiled model.
    """

    computed: ClassVar[tuple[str, ...]] = ("ratio",)

    quantity: Quantity
    name: str
    unit: str
    dense: float
    present: float

    @property
    def ratio(self) -> float | None:
        """Dense value divided by the present one; ``None`` if that is 0."""
        return self.dense / self.present if self.present else None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGroupRecord(Record):
    """Units with slices in several layers.

    Attributes:
        name: Name of the group.
        kind: ``"channels"`` or ``"heads"``.
        units: Number of units before.
        gone: Units that are pruned or removed; ``None``: unknown.
        reason: Why units stay; empty if there is no reason.
    """

    name: str
    kind: str
    units: int
    gone: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Record):
    """What was done to a model, and the result.

    Attributes:
        title: What the summary is about.
        headlines: What was done, one sentence per step.
        facts: Label → text, such as the solver, the data and the machine.
        configs: The configurations, as `PruningConfig.to_dict` returns them.
        digests: File or data → SHA-256, in hexadecimal.
        measures: What was measured before and after.
        layers: The layers, in the order of the model.
        groups: The groups of units.
        sensitivity: What each layer loses if it is pruned alone; ``None``: unknown.
        history: Share of units pruned after each update that changed it: (step, share).
        last_step: Step at which the schedule ends; ``None``: there is no schedule.
        warnings: Why measures may be misleading.
        notes: What else is worth knowing.
        interruption: Why the run is not complete; ``None``: it is.
        search: The trials of a search.
        format_version: Version of `to_dict`.
    """

    title: str
    headlines: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    configs: tuple[dict[str, Any], ...] = ()
    digests: dict[str, str] = field(default_factory=dict)
    measures: tuple[Measure, ...] = ()
    layers: tuple[LayerRecord, ...] = ()
    groups: tuple[UnitGroupRecord, ...] = ()
    sensitivity: SensitivityMap | None = None
    history: tuple[tuple[int, float], ...] = ()
    last_step: int | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    interruption: str | None = None
    search: SearchSummary | None = None
    format_version: int = FORMAT_VERSION

    @property
    def dense(self) -> dict[str, str]:
        """Layer that stays dense → the reason."""
        return {layer.name: layer.dense_reason for layer in self.layers if layer.dense_reason is not None}

    def join(self, *others: Summary) -> Summary:
        """Join the summaries of several steps; where they disagree, the first one wins.

        Examples:
            >>> pruned = Summary(title="fc", facts={"Solver": "wanda"})
            >>> pruned.join(Summary(title="bench", facts={"Threads": "2"})).facts
            {'Solver': 'wanda', 'Threads': '2'}
        """
        parts = (self, *others)
        return Summary(
            title=self.title,
            headlines=_join_texts(part.headlines for part in parts),
            facts=_join_mappings(part.facts for part in parts),
            configs=next((part.configs for part in parts if part.configs), ()),
            digests=_join_mappings(part.digests for part in parts),
            measures=_join_measures(part.measures for part in parts),
            layers=join_layers(*(part.layers for part in parts)),
            groups=next((part.groups for part in parts if part.groups), ()),
            sensitivity=next((part.sensitivity for part in parts if part.sensitivity is not None), None),
            history=next((part.history for part in parts if part.history), ()),
            last_step=next((part.last_step for part in parts if part.last_step is not None), None),
            warnings=_join_texts(part.warnings for part in parts),
            notes=_join_texts(part.notes for part in parts),
            interruption=next((part.interruption for part in parts if part.interruption is not None), None),
            search=next((part.search for part in parts if part.search is not None), None),
        )


class Summarizable(ABC):
    """Base class of objects that have a summary, and can be written as a page or a data frame."""

    __slots__ = ()

    @abstractmethod
    def summarize(self) -> Summary:
        """Return what was done and measured, in the form that all reports share."""

    def to_html(
        self,
        path: str | Path,
        *,
        model: Any = None,
        more: Iterable[Summarizable] = (),
        quality: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Write the report as one self-contained HTML file.

        Args:
            path: The file; an existing one is replaced.
            model: The pruned model, or the file or folder that it was saved to, to show its masks.
            more: Reports of other steps, such as what `secateur.save` returns, to show in the same page.
            quality: Metric → its values before and after, such as ``{"accuracy": (0.93, 0.92)}``.

        Raises:
            MissingPackageError: jinja2 is not installed.
            ConfigError: The file cannot be written, or `more` or `quality` is not as above.
        """
        # The pages import this package, so it can only import them when one is written.
        import_module("secateur.report.page").write_report(self, path, model=model, more=more, quality=quality)

    def to_pandas(self) -> Any:
        """Return the layers as a `pandas.DataFrame`: one row per layer, one column per known value.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        rows = [layer.to_dict() for layer in self.summarize().layers]
        names = [*(field.name for field in fields(LayerRecord)), *LayerRecord.computed]
        known = [name for name in names if name == "name" or any(row[name] is not None for row in rows)]
        return make_data_frame([{name: row[name] for name in known} for row in rows], known)


def describe_config(config: PruningConfig) -> dict[str, Any]:
    """Return settings as plain values, with functions replaced by their names."""

    def describe(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: describe(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [describe(part) for part in value]
        return getattr(value, "__name__", type(value).__name__) if callable(value) else value

    described: dict[str, Any] = describe(config.model_dump())
    return described


def _join_texts(parts: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return all texts in order, each once."""
    return tuple(dict.fromkeys(text for part in parts for text in part))


def _join_mappings(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return all entries in order; for duplicate keys, the first entry."""
    joined: dict[str, str] = {}
    for part in parts:
        joined |= {key: value for key, value in part.items() if key not in joined}
    return joined


def _join_measures(parts: Iterable[Iterable[Measure]]) -> tuple[Measure, ...]:
    """Return all measures in order; for duplicate names, the first measure."""
    joined: dict[str, Measure] = {}
    for part in parts:
        for measure in part:
            joined.setdefault(measure.name, measure)
    return tuple(joined.values())
