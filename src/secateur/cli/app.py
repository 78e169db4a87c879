"""The application: what holds for every command."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from secateur._wording import make_printable
from secateur.cli.failures import report_failure
from secateur.cli.progress import say
from secateur.cli.streams import flush_stdout, one_line_warnings, prepare_streams, printable_logs

__all__ = ["Command", "app"]

UsageError: type[Exception] = typer.BadParameter.mro()[1]
"""What typer raises if a command is called wrongly: of click, or of the copy of click that newer versions contain."""


DEPRECATED_FLAGS = {"--method": "--solver", "--sparsity": "--target-sparsity"}
"""Old name of a flag → new name."""


class Command(TyperCommand):
    """A command that still takes the old names of its flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, with old flags in place of new ones and a warning for each."""
        known = {flag for parameter in self.params for flag in parameter.opts}
        end = args.index("--") if "--" in args else len(args)
        for index, argument in enumerate(args[:end]):
            flag, equals, value = argument.partition("=")
            new = DEPRECATED_FLAGS.get(flag)
            if new in known:
                say(f"Warning: {flag} is deprecated. Use {new}.")
                args[index] = f"{new}{equals}{value}"
        return super().parse_args(ctx, args)


class _Group(TyperGroup):
    """Every command ends with an exit code and a message; see `explain_failure`."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Run the command line and exit."""
        prepare_streams()
        try:
            return super().main(*args, **more)
        # While options are read, as by --help whose text cannot be written; a command's own failure is `invoke`'s.
        except Exception as error:
            raise SystemExit(report_failure(error, debug=False)) from error
        finally:
            flush_stdout()

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Read the options that all commands share."""
        with _printable_usage():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; whatever it raises becomes a message and an exit code."""
        try:
            with _printable_usage(), one_line_warnings(), printable_logs():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, UsageError):
            raise
        # Models are code, and libraries raise anything, even what is no `Exception`.
        except BaseException as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # whoever read the output has seen enough
                raise
            raise typer.Exit(report_failure(error, debug=ctx.params["debug"])) from error


@contextmanager
def _printable_usage() -> Iterator[None]:
    """Escape what a usage error quotes: a shell puts names of files there."""
    try:
        yield
    except UsageError as error:
        error.message = make_printable(str(getattr(error, "message", error)))  # type: ignore[attr-defined]
        raise


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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Prune neural networks in patterns that hardware can use.

    Exit codes: 0 fine, 1 an error that the message explains, 2 wrong usage, 70 a fault of Secateur, 130 interrupted.
    """
