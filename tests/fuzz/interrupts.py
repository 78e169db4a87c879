"""Simulate Ctrl-C at a given line of Secateur's code."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import secateur

__all__ = ["count_lines", "interrupt_at"]

SOURCES = str(Path(secateur.__file__).parent)


class _Tracer:
    """Counts lines of Secateur's code, and sends ``SIGINT`` at one of them."""

    def __init__(self, at: int | None) -> None:
        self.lines = 0
        self._at = at

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._at:
                signal.raise_signal(signal.SIGINT)
        return self


def count_lines(act: Callable[[], object]) -> int:
    """Count the lines of Secateur's code that a function runs."""
    return _trace(None, act)


def interrupt_at(line: int, act: Callable[[], object]) -> None:
    """Call a function, and simulate Ctrl-C at a line, counted from 1."""
    _trace(line, act)


def _trace(at: int | None, act: Callable[[], object]) -> int:
    tracer, before = _Tracer(at), sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    finally:
        sys.settrace(before)
    return tracer.lines
