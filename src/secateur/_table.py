"""Format tables, colored for terminals or as plain text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any

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

HEADS = (1 / 3, 1 / 2, 2 / 3)
"""Shares of a cut name to keep at its start, of which the first that keeps most names intact is used."""

MAX_ROWS = 20
"""Number of rows up to which a table shows each of them. In longer ones, equal rows of repeated blocks are one row."""

NUMBER = re.compile(r"(?<![^./])(?:0|[1-9][0-9]{0,9})(?![^./])")
"""Matches a part of a name that is a number, such as the number of a block; numbers with leading zeros are not."""

MAX_NUMBERS = 8
"""Rows whose names have more numbers are not joined."""


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
            name = make_printable_line(unsafe)  # without NUL
            numbers = NUMBER.findall(name)
            is_joined = len(numbers) <= MAX_NUMBERS
            copies[name] += 1
            key = (NUMBER.sub("\0", name) if is_joined else name, copies[name], index in self.dimmed, *cells)
            groups.setdefault(key, []).append(tuple(map(int, numbers if is_joined else ())))
        rows: list[Sequence[str]] = []
        dimmed: set[int] = set()
        for (template, _, is_dimmed, *cells), numbers in groups.items():
            for name in _join_names(template, numbers):
                if is_dimmed:
                    dimmed.add(len(rows))
                rows.append((name, *cells))
        return rows, dimmed

    def _cut_names(self, rows: list[list[str]], max_width: int) -> list[list[str]]:
        """Cut the cells of the first column in the middle where the table is too wide and they stay different."""
        excess = self._compute_min_width(rows) - max_width
        names = [row[0] for row in rows]
        if excess <= 0 or len(self.columns) < 2:
            return rows
        width = max(MIN_NAME, max(map(len, names), default=0) - excess)
        cut = min(({name: _cut_middle(name, width, head) for name in names} for head in HEADS), key=_count_bad_cuts)
        counts = Counter(cut.values())
        return [
            [cut[name] if counts[cut[name]] == 1 else name, *row[1:]] for name, row in zip(names, rows, strict=True)
        ]

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


def _join_names(template: str, numbers: Sequence[tuple[int, ...]]) -> list[str]:
    r"""Write names that differ in numbers only as few names with ranges.

    Args:
        template: The names with a NUL character in place of each number.
        numbers: The numbers of each name, in order.

    Examples:
        >>> _join_names("layers.\0.fc", [(0,), (1,), (2,), (5,)])
        ['layers.{0–2,5}.fc']
    """
    values = [list(dict.fromkeys(column)) for column in zip(*numbers, strict=True)]
    if prod(map(len, values)) == len(numbers):
        ranges = iter(_format_numbers(column) for column in values)
        return [re.sub("\0", lambda _: next(ranges), template)]
    rest: dict[int, list[tuple[int, ...]]] = {}
    for first, *others in numbers:
        rest.setdefault(first, []).append(tuple(others))
    return [name for first, rows in rest.items() for name in _join_names(template.replace("\0", str(first), 1), rows)]


def _format_numbers(numbers: Iterable[int]) -> str:
    """Format numbers as ranges, in braces if there are several."""
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return str(ordered[0])
    runs = [[number for _, number in run] for _, run in groupby(enumerate(ordered), lambda entry: entry[1] - entry[0])]
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs) + "}"


def _count_bad_cuts(cut: Mapping[str, str]) -> int:
    """Count the names that are no longer unique, or whose ranges of numbers are cut."""
    counts = Counter(cut.values())
    return sum(counts[short] > 1 or short.count("{") != short.count("}") for short in cut.values())


def _cut_middle(text: str, width: int, head_share: float) -> str:
    """Shorten a text in the middle, keeping this share of the characters at its start.

    Examples:
        >>> _cut_middle("encoder.layer.0.attention.self.query", 24, 1 / 3)
        'encoder…ntion.self.query'
    """
    if len(text) <= width:
        return text
    head = int((width - 1) * head_share)
    return f"{text[:head]}…{text[head + 1 - width :]}"
