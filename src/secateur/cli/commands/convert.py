"""Define ``secateur convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur._progress import ProgressDisplay
from secateur.cli.options import AsJson
from secateur.cli.output import show, show_text

__all__ = ["convert"]


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", exists=True, help="Artifact, transformers folder or .safetensors file.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", file_okay=False, help="New folder; an existing artifact is replaced.")
    ],
    *,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write dense tensors, for transformers and other tools.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a saved model to packed tensors, or to dense ones for other tools.

    The tensors are converted without building the model.

    [bold]Examples[/bold]

    secateur convert ./my-pruned-bert packed

    secateur convert packed for-transformers --dense

    secateur convert model.safetensors packed --json
    """
    from secateur.artifact import convert as convert_files
    from secateur.cli.destination import check_not_current

    check_not_current(target)
    with ProgressDisplay() as steps:
        steps.begin(f"Writing {target}")
        report = convert_files(source, target, dense=dense)
    if as_json:
        show(report, as_json=True)
        return
    share = report.packed_bytes / (report.dense_bytes or 1)
    show_text(f"Written to {target}: {report.packed_bytes:,} of {report.dense_bytes:,} bytes ({share:.1%}).")
