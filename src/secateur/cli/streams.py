"""Make standard output and standard error safe to write any text to."""

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
from secateur.cli.messages import say

__all__ = ["escape_logs", "flush_stdout", "prepare_streams", "show_warnings_in_one_line"]


def prepare_streams() -> None:
    """Make sure that any text can be written to standard output and standard error.

    A closed stream is replaced by one that discards its output. Characters that the encoding lacks are escaped as in a
    Python literal.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_stdout() -> None:
    """Flush standard output, or discard its buffer, so that Python does not fail when it flushes again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Standard output may not be a file.
        with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())


@contextmanager
def show_warnings_in_one_line() -> Iterator[None]:
    """Print Python warnings on one line each, without their location in the source."""

    def show(message: Warning | str, *_location: Any, **_options: Any) -> None:
        say(f"Warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def escape_logs() -> Iterator[None]:
    """Escape control characters in the messages of all loggers, including those of libraries."""
    original = logging.getLogRecordFactory()

    def create_record(*args: Any, **more: Any) -> logging.LogRecord:
        record = original(*args, **more)
        record.msg, record.args = make_printable(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(create_record)
    try:
        yield
    finally:
        logging.setLogRecordFactory(original)
