"""Base classes of reports, which can be shown as tables and written as JSON.

A `Row` declares its columns once: heading, alignment, value and format. A `Report` has rows. ``to_dict``, ``table`` and
``str`` follow from these declarations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

from secateur._table import Table

__all__ = ["Column", "Record", "Report", "Row"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        heading: Its heading; a leading ``">"`` aligns the column to the right.
        value: Name of an attribute of the row, or a function of the row. ``None`` is shown as an empty cell.
        format: Template such as ``"{:.2%}"``, or a function that formats the value.

    Examples:
        >>> Column(">real part", "real", "{:.1f}").format_cell(0.25)
        '0.2'
    """

    heading: str
    value: str | Callable[[Any], Any]
    format: str | Callable[[Any], str] = "{}"

    def format_cell(self, row: Any) -> str:
        """Format the cell of this column in a row."""
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
        """Return the fields and computed properties as plain dicts, lists, numbers and strings."""
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
        """Whether the row is shown dimmed, as less important than others."""
        return False

    def cells(self) -> tuple[str, ...]:
        """Return the formatted cells of the row."""
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
        """The columns of the table, usually those of its rows."""

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        return []

    def table(self) -> Table:
        """Return the report as a table for the terminal."""
        return Table(
            title=self.table_title,
            columns=[column.heading for column in self.columns],
            rows=[[column.format_cell(row) for column in self.columns] for row in self.rows],
            dimmed=frozenset(index for index, row in enumerate(self.rows) if row.is_dimmed),
            footer=self.footer,
        )

    def __str__(self) -> str:
        return self.table().text(self.width)

    def __repr__(self) -> str:
        summary = self.footer[0] if self.footer else f"{len(self.rows)} rows"
        return f"<{type(self).__name__}: {summary}>"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _to_plain(value: Any) -> Any:
    """Convert records, mappings and tuples to dicts and lists."""
    if isinstance(value, Record):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_plain(part) for key, part in value.items()}
    return [_to_plain(part) for part in value] if isinstance(value, tuple | list) else value
