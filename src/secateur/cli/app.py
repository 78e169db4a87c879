"""The application: what holds for every command."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from secateur.errors import SecateurError

__all__ = ["app"]


class _Group(TyperGroup):
    """Every command ends with 0 if all went well, 1 on a `SecateurError`, 2 if it was called wrongly."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of ours, or of a file or disk, is a message and no traceback."""
        try:
            return super().invoke(ctx)
        except (SecateurError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
                raise
            Console(stderr=True).print(Text(str(error), style="red"), soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="secateur",
    cls=_Group,
    no_args_is_help=True,
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
