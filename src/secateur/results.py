"""What was done, as plain records that know how to become a table or JSON.

A `Row` declares its columns once: heading, alignment, value and format. A `Report` has rows. ``to_dict``, ``table`` and
``str`` follow from these declarations.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

from secateur._table import Table
from secateur._wording import format_count, format_shape
from secateur.config import PruningConfig

__all__ = ["Column", "LayerResult", "PruningReport", "Record", "Report", "Row"]

logger = logging.getLogger(__name__)

MIN_DIFFERENCE = 0.005
"""Difference between the shares of units and of weights from which on a report points it out."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        heading: Its heading; a leading ``">"`` aligns the column to the right.
        value: Attribute of a row, or a function that gets the row. The cell of ``None`` is empty.
        format: Template such as ``"{:.2%}"``, or a function from the value to text.

    Example:
        >>> Column(">real part", "real", "{:.1f}").format_cell(0.25)
        '0.2'
    """

    heading: str
    value: str | Callable[[Any], Any]
    format: str | Callable[[Any], str] = "{}"

    def format_cell(self, row: Any) -> str:
        """The text of this column's cell in a row."""
        value = getattr(row, self.value) if isinstance(self.value, str) else self.value(row)
        if value is None:
            return ""
        return self.format.format(value) if isinstance(self.format, str) else self.format(value)


class Record:
    """A dataclass that can be written as JSON.

    Attributes:
        computed: Properties that `to_dict` adds to the fields.
        omitted: Fields that `to_dict` leaves out.
    """

    __slots__ = ()
    computed: ClassVar[tuple[str, ...]] = ()
    omitted: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields and computed values as plain dicts, lists, numbers and strings."""
        names = [field.name for field in fields(self) if field.name not in self.omitted]  # type: ignore[arg-type]
        return {name: _to_plain(getattr(self, name)) for name in (*names, *self.computed)}


class Row(Record):
    """A record that is one row of a table.

    Attributes:
        columns: The columns of the table.
    """

    __slots__ = ()
    columns: ClassVar[tuple[Column, ...]]

    @property
    def is_dimmed(self) -> bool:
        """Whether the row is shown as less important than others."""
        return False

    def cells(self) -> tuple[str, ...]:
        """The text of each column."""
        return tuple(column.format_cell(self) for column in self.columns)


class Report(Record, ABC):
    """A record that is shown as a table.

    Attributes:
        width: Characters in a line of ``str(report)``.
    """

    __slots__ = ()
    width: ClassVar[int] = 120

    @property
    @abstractmethod
    def table_title(self) -> str:
        """The line above the table."""

    @property
    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """The rows of the table."""

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table, nearly always those of its rows."""

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        return []

    def table(self) -> Table:
        """The report as a table for the terminal."""
        return Table(
            title=self.table_title,
            columns=[column.heading for column in self.columns],
            rows=[[column.format_cell(row) for column in self.columns] for row in self.rows],
            dimmed=frozenset(index for index, row in enumerate(self.rows) if row.is_dimmed),
            footer=self.footer,
        )

    def __str__(self) -> str:
        return self.table().text(self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult(Row):
    """One pruned layer.

    Attributes:
        name: The layer's name in the model.
        pattern: Its pattern specification.
        shape: Its weight as stored.
        weights: Number of its weights.
        pruned_weights: Weights that the mask prunes; each is exactly zero.
        units: Number of units that its weight is tiled into.
        pruned_units: Units of which no weight is left.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("layer", "name"),
        Column(">shape", "shape", format_shape),
        Column("pattern", "pattern"),
        Column(">sparsity", "sparsity", "{:.2%}"),
        Column(">weights pruned", lambda row: f"{row.pruned_weights:,} of {row.weights:,}"),
        Column(">units pruned", lambda row: f"{row.pruned_units:,} of {row.units:,}"),
    )

    name: str
    pattern: str
    shape: tuple[int, ...]
    weights: int
    pruned_weights: int
    units: int
    pruned_units: int

    @property
    def sparsity(self) -> float:
        """Share of weights pruned, in [0, 1]."""
        return self.pruned_weights / self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningReport(Report):
    """The result of a run, verified against masks and weights.

    Attributes:
        layers: Every pruned layer.
        dense: Layers left dense → why.
        step: Optimizer steps taken.
        last_step: Step at which the target is reached.
        model_weights: Parameters of the whole model; shared ones count once.
        configs: The configurations of the run, one for all layers of equal settings.
    """

    computed: ClassVar[tuple[str, ...]] = ("sparsity", "unit_sparsity", "model_sparsity", "is_complete")
    omitted: ClassVar[tuple[str, ...]] = ("configs",)

    layers: tuple[LayerResult, ...]
    dense: dict[str, str]
    step: int
    last_step: int
    model_weights: int
    configs: tuple[PruningConfig, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of weights pruned over all pruned layers, in [0, 1]."""
        return sum(layer.pruned_weights for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def unit_sparsity(self) -> float:
        """Share of units pruned over all pruned layers, in [0, 1]."""
        return sum(layer.pruned_units for layer in self.layers) / sum(layer.units for layer in self.layers)

    @property
    def model_sparsity(self) -> float:
        """Share of the whole model's parameters pruned, in [0, 1]."""
        return sum(layer.pruned_weights for layer in self.layers) / self.model_weights

    @property
    def is_complete(self) -> bool:
        """Whether the run reached its last step, and so its target."""
        return self.step >= self.last_step

    def warn_if_incomplete(self) -> None:
        """Log a warning if the run ended before its target."""
        if not self.is_complete:
            logger.warning(
                "finalize() after step %d, but the schedule ends at step %d: sparsity is %.4f so far. "
                "Train longer, or set a smaller end_step.",
                self.step,
                self.last_step,
                self.sparsity,
            )

    @property
    def table_title(self) -> str:
        """The line above the table."""
        return "Pruned"

    @property
    def rows(self) -> tuple[LayerResult, ...]:
        """The rows of the table."""
        return self.layers

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table."""
        return LayerResult.columns

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        lines = [
            f"In all {self.sparsity:.2%} of the weights in {format_count(len(self.layers), 'layer')}, "
            f"{self.model_sparsity:.2%} of the model; {format_count(len(self.dense), 'other layer')} left dense."
        ]
        sizes = {layer.weights // layer.units for layer in self.layers}
        if len(sizes) > 1 and abs(self.unit_sparsity - self.sparsity) > MIN_DIFFERENCE:
            lines.append(
                "Units differ in size: the target is a share of units, and "
                f"{self.unit_sparsity:.2%} of them are pruned."
            )
        if not self.is_complete:
            lines.append(f"The target was not reached: stopped at step {self.step} of {self.last_step}.")
        return lines


def _to_plain(value: Any) -> Any:
    """Dicts, lists, numbers and strings in place of records, mappings and tuples."""
    if isinstance(value, Record):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_plain(part) for key, part in value.items()}
    return [_to_plain(part) for part in value] if isinstance(value, tuple | list) else value
