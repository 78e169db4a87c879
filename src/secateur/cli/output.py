"""What commands print: results on standard output, all else on standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Protocol

import typer
from rich.console import Console

from secateur._table import Table
from secateur._wording import make_printable

__all__ = ["Result", "console", "show", "show_text"]

WIDTH_OF_A_FILE = 120
"""Characters in a line where nobody sees them in a terminal."""


class Result(Protocol):
    """What a command found, for a person and for machines."""

    def table(self) -> Table:
        """For a person."""

    def to_dict(self) -> dict[str, Any]:
        """For machines, as plain values."""


def show(result: Result, *, as_json: bool) -> None:
    """Print a result."""
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        console().print(result.table())


def show_text(text: str) -> None:
    """Print a sentence, made safe to print."""
    console().print(make_printable(text), highlight=False, markup=False, soft_wrap=True)


def console() -> Console:
    """Standard output, as wide as the terminal."""
    is_seen = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_seen else WIDTH_OF_A_FILE)
