"""Define ``secateur demo``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from secateur._packages import require_packages
from secateur.cli.options import AsJson
from secateur.cli.output import make_console

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder to write the pruned models to.")] = Path(
        "secateur-demo"
    ),
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Number of training runs per row, each with its own seed.", show_default="1, full: 3"),
    ] = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="Show all patterns and solvers, in ten minutes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prune a sentence encoder and a language model; train, prune and compare small PyTorch and Keras networks.

    This takes about two minutes on two cores.

    Keras uses the backend named in KERAS_BACKEND, or else one that is installed.

    [bold]Examples[/bold]

    secateur demo

    secateur demo --full --out /tmp/pruned

    secateur demo --json > numbers.json
    """
    require_packages("torch", "sklearn", extra="demo")
    from secateur.demo import run_demo
    from secateur.demo.scale import FULL, QUICK

    scale = FULL if full else QUICK
    if not as_json:
        run_demo(out, seeds, make_console(), scale=scale)
        return
    from rich.console import Console

    with redirect_stdout(sys.stderr):
        run_demo(out, seeds, Console(file=sys.stderr), scale=scale)
    typer.echo((out / "report.json").read_text("utf-8"), nl=False)
