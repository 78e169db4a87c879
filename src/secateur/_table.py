"""A small table that a person reads: coloured in a terminal, plain as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under headings.

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
    footer: Sequence[str] = field(default=())

    def __rich__(self) -> object:
        from rich import box
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for heading in self.columns:
            right = heading.startswith(">")
            table.add_column(heading.removeprefix(">"), justify="right" if right else "left", overflow="fold")
        for index, row in enumerate(self.rows):
            table.add_row(*(Text(cell) for cell in row), style="dim" if index in self.dimmed else None)
        return Group(table, *(Text(line) for line in self.footer))

    def text(self, width: int = 120) -> str:
        """The table as plain text, `width` characters wide at the most."""
        import io

        from rich.console import Console

        console = Console(file=io.StringIO(), width=width, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())
