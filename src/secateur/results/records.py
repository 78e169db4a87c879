"""Records, which can be written as JSON, and rows, which are records that declare the columns of their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

__all__ = ["Column", "Record", "Row"]


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


def _to_plain(value: Any) -> Any:
    """Convert records, mappings and tuples to dicts and lists."""
    if isinstance(value, Record):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_plain(part) for key, part in value.items()}
    return [_to_plain(part) for part in value] if isinstance(value, tuple | list) else value
