"""Show the progress of a command on standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from secateur._wording import make_printable, make_printable_line

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.oneshot.execution import Progress

__all__ = ["Steps", "format_time", "say"]

MAX_DESCRIPTION = 100
"""Maximum length of the text before the bar, in characters."""


class Steps:
    """A progress bar on standard error that shows the current step and the time left, in terminals only.

    Args:
        console: Console for the bar; by default, one for standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        console = console or Console(file=sys.stderr)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("", total=None, left="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, step: str) -> None:
        """Show a step of unknown length."""
        self._bars.remove_task(self._task)  # a task keeps its total, so each step is a new task
        self._task = self._bars.add_task(make_printable_line(step, MAX_DESCRIPTION), total=None, left="")

    def show_part(self, progress: Progress) -> None:
        """Show the progress of a calibrated run."""
        self._bars.update(
            self._task,
            description=make_printable_line(f"Pruned {progress.stage}", MAX_DESCRIPTION),
            completed=progress.done,
            total=progress.total,
            left=f"{format_time(progress.seconds_left)} left" if progress.done < progress.total else "",
        )


def format_time(seconds: float) -> str:
    """Format a time as hours, minutes and seconds.

    Examples:
        >>> format_time(7.6), format_time(4000)
        ('0:08', '1:06:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say(text: str) -> None:
    """Print a message to standard error after escaping control characters."""
    from rich.console import Console

    Console(file=sys.stderr).print(make_printable(text), highlight=False, markup=False, soft_wrap=True)
