"""The streams of a command: always there, and nothing unprintable goes to them."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from secateur._wording import make_printable
from secateur.cli.progress import say

__all__ = ["flush_stdout", "one_line_warnings", "prepare_streams", "printable_logs"]


def prepare_streams() -> None:
    """Make standard output and standard error take every text.

    A stream that is closed is replaced by one that discards everything, and characters that its encoding does not have
    are written as in a Python literal.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_stdout() -> None:
    """Write what standard output still holds, or drop it: Python would try again, and fail, when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # it is no file
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show warnings of Python code in one line each, without the place in the source."""

    def show(message: Warning | str, *_place: Any, **_more: Any) -> None:
        say(f"Warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def printable_logs() -> Iterator[None]:
    """Make the messages of all loggers safe to print, those of other libraries too."""
    before = logging.getLogRecordFactory()

    def create_record(*args: Any, **more: Any) -> logging.LogRecord:
        record = before(*args, **more)
        record.msg, record.args = make_printable(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(create_record)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
