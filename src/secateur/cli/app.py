"""Define the application: shared options, deprecated flags and error handling."""

from __future__ import annotations

import atexit
import errno
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from secateur._wording import make_printable
from secateur.cli.failures import report_failure
from secateur.cli.messages import say
from secateur.cli.processes import refuse_processes
from secateur.cli.streams import escape_logs, flush_stdout, prepare_streams, show_warnings_in_one_line

__all__ = ["Command", "app"]

UsageError: type[Exception] = typer.BadParameter.mro()[1]
"""Exception that typer raises for wrong usage, from click or from the copy of click in newer versions of typer."""

GARBAGE_THRESHOLD = 50_000
"""Number of new objects after which the garbage collector runs; Python's default is 700."""

DEPRECATED_FLAGS = {"--method": "--solver", "--sparsity": "--target-sparsity"}
"""Old name of a flag → new name."""


class Command(TyperCommand):
    """A command that also accepts deprecated names of its flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and replace deprecated flags with a warning."""
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
    """The group of all commands. It turns exceptions into a message and an exit code; see `explain_failure`."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Run the command line and exit."""
        prepare_streams()
        try:
            with _collect_garbage_rarely():
                return super().main(*args, **more)
        # Errors before a command runs, for example when the help text cannot be written; `invoke` handles the others.
        except Exception as error:
            raise SystemExit(report_failure(error, debug=False)) from error
        finally:
            flush_stdout()

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Parse the options that all commands share."""
        with _escape_usage_errors():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and turn any exception into a message and an exit code."""
        try:
            with _escape_usage_errors(), show_warnings_in_one_line(), escape_logs():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, UsageError):
            raise
        # The code of models and libraries can raise anything, including exceptions that are not an `Exception`.
        except BaseException as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader of the output has closed it
                raise
            raise typer.Exit(report_failure(error, debug=ctx.params["debug"])) from error


@contextmanager
def _collect_garbage_rarely() -> Iterator[None]:
    """Run Python's garbage collector rarely, and not at exit: importing frameworks creates millions of objects."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    thresholds = gc.get_threshold()
    gc.set_threshold(GARBAGE_THRESHOLD, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@contextmanager
def _escape_usage_errors() -> Iterator[None]:
    """Escape messages of usage errors, which may quote file names."""
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


def _show_version(is_requested: bool) -> None:
    if is_requested:
        try:
            typer.echo(f"secateur {version('secateur')}")
        except PackageNotFoundError:
            typer.echo("secateur (running from source, not installed)")
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    *,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Prune neural networks in patterns that hardware can use.

    Exit codes: 0 success, 1 error that the message explains, 2 wrong usage, 70 bug in Secateur, 130 interrupted.
    """
    del show_version, debug  # read elsewhere
    refuse_processes(ctx.invoked_subcommand)
