"""The base class of reports, which can be shown as tables and pages, and written as JSON.

A `Row` declares its columns once: heading, alignment, value and format. A `Report` has rows. ``to_dict``, ``table`` and
``str`` follow from these declarations.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from secateur._table import Table
from secateur.results.records import Column, Record, Row
from secateur.results.summary import FORMAT_VERSION, Summarizable, Summary

__all__ = ["Report"]


class Report(Record, Summarizable):
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

    def summarize(self) -> Summary:
        """Return what was done and measured; here, only the lines around the table."""
        return Summary(title=self.table_title, headlines=tuple(self.footer[:1]), notes=tuple(self.footer[1:]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the version of the format, the fields and the computed properties."""
        return {"format_version": FORMAT_VERSION} | super().to_dict()

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
