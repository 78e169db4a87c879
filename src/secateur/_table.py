"""A small table that a person reads: coloured in a terminal, plain as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur._wording import make_printable, make_printable_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult

__all__ = ["Table"]

PADDING = 2
"""Characters between two columns."""

LEAST_WIDTH = 20
"""Characters that the last column needs to be read with ease, wrapped as it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under headings.

    All texts are made safe to print, and shortened where they are very long.

    Attributes:
        title: One line above.
        columns: Headings; a leading ``">"`` aligns the column to the right.
        rows: Cells, one sequence per row.
        dimmed: Indices of rows that matter less.
        footer: Lines below.
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

        rows = [_printable_cells(row) for row in self.rows]
        table = RichTable(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
        last_gives_way = self._width_of_all_but_last(rows) + LEAST_WIDTH <= options.max_width
        for index, heading in enumerate(self.columns):
            justify: JustifyMethod = "right" if heading.startswith(">") else "left"
            no_wrap = last_gives_way and index < len(self.columns) - 1
            table.add_column(heading.removeprefix(">"), justify=justify, overflow="fold", no_wrap=no_wrap)
        for index, row in enumerate(rows):
            table.add_row(*(Text(cell) for cell in row), style="dim" if index in self.dimmed else None)
        yield Text(make_printable_line(self.title), style="bold")
        yield Text()
        yield table
        yield Text()
        yield from (Text(make_printable(line)) for line in self.footer)

    def _width_of_all_but_last(self, rows: Sequence[Sequence[str]]) -> int:
        columns = list(zip(self.columns, *rows, strict=True))[:-1]
        return sum(max(len(cell) for cell in column) + PADDING for column in columns)

    def text(self, width: int = 120) -> str:
        """The table as plain text, `width` characters wide at the most."""
        import io

        from rich.console import Console

        console = Console(file=io.StringIO(), width=width, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _printable_cells(row: Sequence[str]) -> list[str]:
    """Cells in one line each, but for the last one, which may hold a text of several."""
    *names, last = row
    return [*map(make_printable_line, names), make_printable(last)]
