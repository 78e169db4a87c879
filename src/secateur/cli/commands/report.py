"""Define ``secateur report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secateur._progress import ProgressDisplay
from secateur.cli.messages import say
from secateur.cli.options import AsJson
from secateur.cli.output import show_text

__all__ = ["report"]


def report(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            exists=True,
            help="Artifact, folder of an unfinished run, transformers folder or .safetensors file.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="HTML file to write.", show_default="the name of PATH with .html"),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write a report on a saved model, or on an unfinished run, as one HTML file.

    The file is self-contained. It shows what was pruned and how, the size before and after, every
    layer with its mask, and what stayed dense. For an unfinished run, it shows the finished layers.

    With --json, the report is printed as JSON, and a file is only written with --out. Writing the file needs jinja2,
    which Secateur's extra report installs.

    [bold]Examples[/bold]

    secateur report pruned

    secateur report pruned --out /tmp/report.html

    secateur report pruned.part --json
    """
    from secateur.report.page import check_report_file, write_page
    from secateur.report.saved import read_saved_masks, summarize_saved
    from secateur.report.sections import make_verdict

    target = None if as_json and out is None else out or Path(f"{path.resolve().name}.html")
    if target is not None:
        check_report_file(target)
    with ProgressDisplay() as steps:
        steps.begin(f"Reading {path}")
        summary = summarize_saved(path)
        if target is not None:
            steps.begin(f"Writing {target}")
            write_page(summary, target, read_saved_masks(path))
    if as_json:
        typer.echo(json.dumps(summary.to_dict(), indent=2))
    else:
        verdict = make_verdict(summary)
        assert verdict is not None  # only searches have none
        show_text(verdict["line"])
    if target is not None:
        say(f"Written to {target}.")
