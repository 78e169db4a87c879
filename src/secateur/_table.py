"""Format tables, colored for terminals or as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from secateur._row_names import cut_names, join_names, split_name
from secateur._wording import make_printable, make_printable_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Table"]

PADDING = 2
"""Number of spaces between two columns."""

MIN_WIDTH = 20
"""Minimum width of the last column, in characters, for wrapped text to be readable."""

MIN_WRAPPED = 10
"""The same in narrow terminals, where other columns would have to wrap instead."""

MIN_NAME = 20
"""Minimum width of the first column, in characters, if it must be cut."""

MAX_ROWS = 20
"""Number of rows up to which a table shows each of them. In longer ones, equal rows of repeated blocks are one row."""


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

        folded, dimmed = self._fold_rows()
        rows = self._cut_names([_escape_cells(row) for row in folded], options.max_width)
        table = RichTable(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
        longest = max((len(row[0]) for row in rows), default=0)
        left = options.max_width - self._compute_min_width(rows, MIN_WRAPPED) + longest  # for the first column
        for index, heading in enumerate(self.columns):
            table.add_column(
                heading.removeprefix(">"),
                justify="right" if heading.startswith(">") else "left",
                overflow="fold",
                no_wrap=index < len(self.columns) - 1 and left >= (min(longest, MIN_NAME) if index else longest),
                width=left if index == 0 and MIN_NAME <= left < longest else None,
            )
        for index, row in enumerate(rows):
            table.add_row(*(Text(cell) for cell in row), style="dim" if index in dimmed else None)
        yield Text(make_printable_line(self.title), style="bold")
        yield Text()
        yield table
        yield Text()
        yield from (Text(make_printable(line)) for line in self.footer)

    def _repr_html_(self) -> str:
        """Format the table for notebooks."""
        align = ["right" if heading.startswith(">") else "left" for heading in self.columns]
        rows, dimmed = self._fold_rows()
        styles = [f"text-align:{side};padding:0 0.5em;white-space:nowrap" for side in align[:-1]]
        styles.append(f"text-align:{align[-1]};padding:0 0.5em")
        head = "".join(
            f'<th style="{style}">{escape(heading.removeprefix(">"))}</th>'
            for style, heading in zip(styles, self.columns, strict=True)
        )
        body = []
        for index, row in enumerate(rows):
            cells = "".join(
                f'<td style="{style}">{escape(cell)}</td>'
                for style, cell in zip(styles, _escape_cells(row), strict=True)
            )
            body.append(f'<tr style="opacity:0.6">{cells}</tr>' if index in dimmed else f"<tr>{cells}</tr>")
        footer = "".join(f"<div>{escape(make_printable(line))}</div>" for line in self.footer)
        title = escape(make_printable_line(self.title))
        return (
            f"<div><strong>{title}</strong><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table>{footer}</div>"
        )

    def _fold_rows(self) -> tuple[list[Sequence[str]], set[int]]:
        """Return the rows with equal rows of repeated blocks joined, and the indices of those to print dimmed."""
        if len(self.rows) <= MAX_ROWS:
            return list(self.rows), set(self.dimmed)
        groups: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}
        copies: Counter[str] = Counter()
        for index, (unsafe, *cells) in enumerate(self.rows):
            name = make_printable_line(unsafe)
            template, numbers = split_name(name)
            copies[name] += 1
            groups.setdefault((template, copies[name], index in self.dimmed, *cells), []).append(numbers)
        rows: list[Sequence[str]] = []
        dimmed: set[int] = set()
        for (template, _, is_dimmed, *cells), members in groups.items():
            for name in join_names(template, members):
                if is_dimmed:
                    dimmed.add(len(rows))
                rows.append((name, *cells))
        return rows, dimmed

    def _cut_names(self, rows: list[list[str]], max_width: int) -> list[list[str]]:
        """Cut the cells of the first column in the middle if the table is too wide and they stay distinct."""
        excess = self._compute_min_width(rows) - max_width
        names = [row[0] for row in rows]
        if excess <= 0 or len(self.columns) < 2:
            return rows
        short = cut_names(names, max(MIN_NAME, max(map(len, names), default=0) - excess))
        return [[short[name], *row[1:]] for name, row in zip(names, rows, strict=True)]

    def _compute_min_width(self, rows: Sequence[Sequence[str]], last_width: int = MIN_WIDTH) -> int:
        """Return the width at which only the last column wraps, if it is longer than `last_width`."""
        headings = [heading.removeprefix(">") for heading in self.columns]
        *columns, last = zip(headings, *rows, strict=True)
        widths = [max(map(len, column)) + PADDING for column in columns]
        return sum(widths) + min(max(map(len, last)), last_width)

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
