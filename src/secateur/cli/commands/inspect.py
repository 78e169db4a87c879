"""Define ``secateur inspect``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur._packages import require_packages
from secateur._progress import ProgressDisplay
from secateur._wording import format_count
from secateur.cli.messages import say
from secateur.cli.options import AsJson, Weights
from secateur.cli.output import show

__all__ = ["inspect"]


def inspect(
    source: Annotated[
        str, typer.Argument(metavar="PATH_OR_MODEL", help="A saved model, or a model in code as package.module:name.")
    ],
    picture: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Image file (.png, .svg, .pdf) to draw the masks in.")
    ] = None,
    weights: Weights = None,
    *,
    as_json: AsJson = False,
) -> None:
    r"""Show the pattern of zeros and the dense and packed size of every tensor.

    PATH_OR_MODEL is an artifact, a .safetensors file or a transformers folder, from which one tensor at a time is read;
    or a model as in secateur prune.

    --picture draws a panel for each weight with zeros: kept weights are dark, pruned weights are light. A pixel of a
    large weight shows the share of kept weights, and a second image shows its first 32 rows and columns. This needs
    matplotlib, which Secateur's extra plot installs.

    [bold]Examples[/bold]

    secateur inspect pruned

    secateur inspect pruned --picture masks.png

    secateur inspect my_nets:build --weights net.pt --json
    """
    if picture is not None:
        require_packages("matplotlib", extra="plot")
    from secateur.artifact import inspect as inspect_tensors

    with ProgressDisplay() as steps, redirect_stdout(sys.stderr):  # a model's code may print
        steps.begin(f"Reading {source}")
        opened = _open_source(source, weights)
        report = inspect_tensors(opened)
        if picture is not None:
            steps.begin(f"Drawing {picture}")
            _draw(opened, report, picture)
    show(report, as_json=as_json)


def _open_source(source: str, weights: Path | None) -> Any:
    """Return a path to read tensors from, or a loaded model."""
    from secateur._manifest_file import MANIFEST
    from secateur.models import find_transformers_path, load_trained

    path = Path(source)
    if weights is None and (path.suffix == ".safetensors" or (path / MANIFEST).is_file()):
        return path
    folder = find_transformers_path(source)
    if weights is None and folder is not None and folder.is_dir():
        return folder
    return load_trained(source, weights).model


def _draw(source: Any, report: Any, picture: Path) -> None:
    from secateur.report import draw_masks, read_masks

    count = draw_masks(read_masks(source, report.tensors), picture)
    say(
        f"Drew {format_count(count, 'mask')} in {picture}."
        if count
        else "No picture drawn, because no weight is pruned."
    )
