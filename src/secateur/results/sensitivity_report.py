"""The report of a sensitivity scan: what each layer loses if it is pruned alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from secateur._files import as_path
from secateur._json import read_json
from secateur._wording import format_count, format_list, format_value
from secateur.errors import ConfigError, StorageError
from secateur.results.data_frame import make_data_frame
from secateur.results.layer_record import LayerRecord
from secateur.results.records import Column
from secateur.results.report_base import Report
from secateur.results.sensitivity_map import LayerSensitivity, PruningCase, SensitivityMap
from secateur.results.summary import FORMAT_VERSION, Summary

__all__ = ["SensitivityReport"]

MAX_FILE_BYTES = 100_000_000
"""Maximum size of a file with a report."""

QUANTITIES = {
    "layer": "share of the layer's output energy that is lost",
    "block": "relative error of the output of the layer's block",
}
"""Metric that Secateur measures → what a loss is."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SensitivityReport(Report):
    """What each layer of a model loses if only this layer is pruned, for several patterns and sparsities.

    ``secateur.prune(model, config, allocation=report)`` distributes a target by it.

    Attributes:
        metric: ``"layer"``, ``"block"``, or the name of a function that measured the whole model.
        solver: The solver that selected the pruned weights.
        layers: The layers that were measured, in the order of the model.
        dense: Layer that was not measured → the reason.
        misfits: Pattern → layer that was measured with other patterns only → the reason.
        out_of_reach: Pattern → sparsities that it cannot reach, such as those above 50 % for 2:4.
        higher_is_better: Whether higher values of the metric are better.
        dense_value: The metric of the dense model; ``None``: losses are errors.
        seconds: Total time.
        data_sha256: Digest of the calibration data, in hexadecimal; empty if there was none.

    Raises:
        ConfigError: The values contradict each other.
    """

    metric: str
    solver: str
    layers: tuple[LayerSensitivity, ...]
    dense: dict[str, str]
    misfits: dict[str, dict[str, str]]
    out_of_reach: dict[str, tuple[float, ...]]
    higher_is_better: bool = False
    dense_value: float | None = None
    seconds: float = 0.0
    data_sha256: str = ""

    width: ClassVar[int] = 160

    def __post_init__(self) -> None:
        names = Counter(layer.name for layer in self.layers)
        if not names or max(names.values()) > 1:
            raise ConfigError("a sensitivity report must have each layer once, and at least one.")
        for layer in self.layers:
            _check_points(layer)

    def __hash__(self) -> int:
        """Return equal hashes for equal reports."""
        return hash((self.metric, self.solver, self.layers))

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Build a report from the result of `to_dict`.

        Raises:
            ConfigError: The values are not those of a sensitivity report, or of a later version.
        """
        if not isinstance(values, Mapping) or values.get("format_version") != FORMAT_VERSION:
            raise ConfigError(
                f"a sensitivity report must be a mapping with format_version={FORMAT_VERSION}, found "
                f"{format_value(dict(values) if isinstance(values, Mapping) else values)}. Pass what to_dict() of the "
                f"report returns."
            )
        known = {field.name for field in fields(cls)}
        try:
            text = json.dumps({key: value for key, value in values.items() if key in known})
            return TypeAdapter(cls).validate_json(text, strict=True)
        except (TypeError, ValidationError) as error:
            reason = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(map(str, reason["loc"]))
            raise ConfigError(
                f"these values are not those of a sensitivity report: {where}: {reason['msg']}. Pass what to_dict() "
                f"of the report returns."
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a report from the file that `write` or ``secateur sensitivity --output`` wrote.

        Raises:
            ArtifactError: The file cannot be read, or is not JSON.
            ConfigError: It does not contain a sensitivity report.
        """
        try:
            return cls.from_dict(read_json(as_path(path), MAX_FILE_BYTES))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write the report as JSON; an existing file is replaced.

        Raises:
            StorageError: The file cannot be written.
        """
        try:
            Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", "utf-8")
        except OSError as error:
            raise StorageError(f"The report {str(path)!r} cannot be written: {error.strerror}.") from error

    @property
    def losses(self) -> SensitivityMap:
        """The losses, and what they are."""
        return SensitivityMap(quantity=self.quantity, layers=self.layers)

    @property
    def cases(self) -> tuple[PruningCase, ...]:
        """The patterns and sparsities that were measured, in order."""
        return self.losses.cases

    @property
    def quantity(self) -> str:
        """What a loss is."""
        direction = "decrease" if self.higher_is_better else "increase"
        return QUANTITIES.get(self.metric, f"{direction} of {self.metric}")

    @property
    def table_title(self) -> str:
        """The line above the table."""
        return "Sensitivity"

    @property
    def rows(self) -> tuple[LayerSensitivity, ...]:
        """The rows of the table."""
        return self.layers

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table: one for each pattern and sparsity."""
        return (*LayerSensitivity.columns, *map(_make_column, self.cases))

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        worst = max((point.loss, layer.name, point.case) for layer in self.layers for point in layer.points)
        count = format_count(len(self.layers), "layer")
        lines = [
            f"Pruned each of {count} alone by {self.solver}, and measured the {self.quantity}. The largest loss is "
            f"{worst[0]:.4g}: {worst[1]!r} at {worst[2]}."
        ]
        if self.dense_value is not None:
            better = "higher" if self.higher_is_better else "lower"
            lines.append(f"The dense model has {self.metric} = {self.dense_value:.6g}; {better} is better.")
        for pattern, sparsities in self.out_of_reach.items():
            shares = format_list(f"{100 * sparsity:.4g}%" for sparsity in sparsities)
            lines.append(f"Out of reach for {pattern}: {shares}.")
        for pattern, reasons in self.misfits.items():
            lines += [f"Not measured with {pattern}: {line}." for line in _group_by_reason(reasons)]
        if self.dense:
            lines.append(f"Left out {format_count(len(self.dense), 'other layer')}. Took {self.seconds:.1f} s.")
        else:
            lines.append(f"Took {self.seconds:.1f} s.")
        return lines

    def summarize(self) -> Summary:
        """Return the losses, and why other layers were not measured."""
        facts = {"Solver": self.solver, "Metric": self.quantity, "Time": f"{self.seconds:.1f} s"}
        return Summary(
            title=self.table_title,
            headlines=tuple(self.footer[:1]),
            facts=facts,
            layers=tuple(LayerRecord(name=name, dense_reason=reason) for name, reason in self.dense.items()),
            sensitivity=self.losses,
            digests={"calibration data": self.data_sha256} if self.data_sha256 else {},
            notes=tuple(self.footer[1:-1]),
        )

    def to_pandas(self) -> Any:
        """Return the losses as a `pandas.DataFrame`: one row per layer, pattern and sparsity.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return make_data_frame(
            [{"layer": layer.name} | point.to_dict() for layer in self.layers for point in layer.points]
        )


def _check_points(layer: LayerSensitivity) -> None:
    """Raise `ConfigError` for points that cannot have been measured."""
    cases = [point.case for point in layer.points]
    if not cases or len(set(cases)) < len(cases):
        raise ConfigError(f"layer {layer.name!r} must have each pattern and sparsity once, and at least one.")
    if not 0 < layer.loss_factor < float("inf"):
        raise ConfigError(f"layer {layer.name!r} must have a finite loss_factor above 0, found {layer.loss_factor}.")
    for point in layer.points:
        if not (0 < point.sparsity <= 1 and 0 <= point.pruned_units <= point.units and abs(point.loss) < float("inf")):
            raise ConfigError(
                f"layer {layer.name!r}: a point must have a sparsity in (0, 1], at most all units pruned and a finite "
                f"loss, found {point.to_dict()}."
            )


def _make_column(case: PruningCase) -> Column:
    return Column(f">{case}", lambda layer: layer.find_loss(case), "{:.4g}")


def _group_by_reason(reasons: Mapping[str, str]) -> list[str]:
    """Return the layers of each reason, and the reason."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(repr(name))
    return [f"{format_list(names, limit=4)}: {reason.rstrip('.')}" for reason, names in groups.items()]
