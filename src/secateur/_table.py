"""Format tables, colored for terminals or as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur._wording import make_printable, make_printable_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult

__all__ = ["Table"]

PADDING = 2
"""Number of spaces between two columns."""

MIN_WIDTH = 20
"""Minimum width of the last column, in characters, for wrapped text to be readable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with a title, column headings, rows and a footer.

    All text is made safe to print, and very long text is shortened.

    Attributes:
        title: The line above the table.
        columns: Headings; a leading ``">"`` right-aligns the column.
        rows: Cells, one sequence per row.
        dimmed: Indices of rows to print dimmed.
        footer: The lines below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    dimmed: frozenset[int] = frozenset()
    footer: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        rows = [_escape_cells(row) for row in self.rows]
        table = RichTable(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
        is_last_flexible = self._compute_width_without_last(rows) + MIN_WIDTH <= options.max_width
        for index, heading in enumerate(self.columns):
            justify: JustifyMethod = "right" if heading.startswith(">") else "left"
            no_wrap = is_last_flexible and index < len(self.columns) - 1
            table.add_column(heading.removeprefix(">"), justify=justify, overflow="fold", no_wrap=no_wrap)
        for index, row in enumerate(rows):
            table.add_row(*(Text(cell) for cell in row), style="dim" if index in self.dimmed else None)
        yield Text(make_printable_line(self.title), style="bold")
        yield Text()
        yield table
        yield Text()
        yield from (Text(make_printable(line)) for line in self.footer)

    def _compute_width_without_last(self, rows: Sequence[Sequence[str]]) -> int:
        columns = list(zip(self.columns, *rows, strict=True))[:-1]
        return sum(max(len(cell) for cell in column) + PADDING for column in columns)

    def text(self, width: int = 120) -> str:
        """Format the table as plain text with at most `width` characters per line."""
        import io

        from rich.console import Console

        console = Console(file=io.StringIO(), width=width, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _escape_cells(row: Sequence[str]) -> list[str]:
    """Escape the cells of a row; only the last cell keeps its line breaks."""
    *names, last = row
    return [*map(make_printable_line, names), make_printable(last)]
