"""Print results to standard output; all other messages go to standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol

import typer

from secateur._wording import make_printable

if TYPE_CHECKING:
    from rich.console import Console

    from secateur._table import Table

__all__ = ["Result", "make_console", "show", "show_text"]

DEFAULT_WIDTH = 120
"""Number of characters per line if the output is not a terminal."""


class Result(Protocol):
    """A result that can be printed as a table or as JSON."""

    def table(self) -> Table:
        """Return the result as a table."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""


def show(result: Result, *, as_json: bool) -> None:
    """Print a result."""
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        make_console().print(result.table())


def show_text(text: str) -> None:
    """Print text after escaping control characters."""
    make_console().print(make_printable(text), highlight=False, markup=False, soft_wrap=True)


def make_console() -> Console:
    """Create a console for standard output, as wide as the terminal."""
    from rich.console import Console

    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if has_width else DEFAULT_WIDTH)
