"""Show the progress of long work on standard error: a bar in terminals, and elsewhere a line at intervals."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from secateur._wording import make_printable_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ProgressDisplay", "format_time"]

MAX_DESCRIPTION = 100
"""Maximum length of the text before the bar, in characters."""

LINE_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal. Work that takes less shows nothing."""


class FinishedPart(Protocol):
    """The attributes of `secateur.oneshot.Progress` that a display shows."""

    @property
    def stage(self) -> str:
        """The part that was just finished."""

    @property
    def done(self) -> int:
        """Parts finished."""

    @property
    def total(self) -> int:
        """Parts in total."""

    @property
    def seconds_left(self) -> float:
        """Estimated remaining time."""

    @property
    def action(self) -> str:
        """What was done to it, such as ``"Pruned"``."""


class ProgressDisplay:
    """Shows the current step of long work, and how much of it is done.

    Args:
        console: Where to show it; by default, standard error.
        interval: Seconds between two lines where there is no terminal; ``None``: ten.
    """

    def __init__(self, console: Console | None = None, interval: float | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._console = console or Console(file=sys.stderr)
        self._interval = LINE_INTERVAL if interval is None else interval
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bars.add_task("", total=None, left="")
        self._step = self._counts = self._left = ""
        self._done, self._start = 0, time.monotonic()
        self._total: int | None = None
        self._is_stopped = Event()
        self._thread = Thread(target=self._print_lines, name="secateur-progress", daemon=True)

    def __enter__(self) -> Self:
        self._bars.start()
        if not self._console.is_terminal:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        self._is_stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def begin(self, step: str, total: int | None = None) -> None:
        """Show a step.

        Args:
            step: The current action, e.g. ``"Reading my-model"``.
            total: Number of parts, each of which ends with `advance`; ``None``: unknown.
        """
        self._bars.remove_task(self._task)  # a task keeps its total, so each step is a new task
        self._step, self._counts, self._left = make_printable_line(step, MAX_DESCRIPTION), "", ""
        self._done, self._total, self._start = 0, total, time.monotonic()
        self._task = self._bars.add_task(self._step, total=total, left="")

    def advance(self, step: str | None = None) -> None:
        """Show that one more part of the step is done, and optionally what happens next."""
        self._done += 1
        self._counts = f"{self._done} of {self._total}" if self._total else ""
        if step is not None:
            self._step = make_printable_line(step, MAX_DESCRIPTION)
        self._bars.update(self._task, description=self._step, completed=self._done)

    def show_part(self, progress: FinishedPart, verb: str | None = None) -> None:
        """Show the progress of a calibrated run, and what was done to each part."""
        is_last = progress.done >= progress.total
        self._left = "" if is_last else f"{format_time(progress.seconds_left)} left"
        self._counts = f"{progress.done} of {progress.total} parts"
        self._bars.update(
            self._task,
            description=make_printable_line(f"{verb or progress.action} {progress.stage}", MAX_DESCRIPTION),
            completed=progress.done,
            total=progress.total,
            left=self._left,
        )

    def _print_lines(self) -> None:
        while not self._is_stopped.wait(self._interval):
            if not self._step:
                continue
            with suppress(OSError, ValueError):  # the stream is closed, or its reader is gone
                self._console.print(self._format_line(), highlight=False, markup=False, soft_wrap=True)

    def _format_line(self) -> str:
        parts = [self._counts, f"{format_time(time.monotonic() - self._start)} elapsed", self._left]
        return f"{self._step}: {', '.join(part for part in parts if part)}"


def format_time(seconds: float) -> str:
    """Format a time as hours, minutes and seconds.

    Examples:
        >>> format_time(7.6), format_time(4000)
        ('0:08', '1:06:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
