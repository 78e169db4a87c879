"""Ctrl-C at a given line of Secateur's own code."""

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
    """Lines that an action runs."""
    return _traced(None, act)


def interrupt_at(line: int, act: Callable[[], object]) -> None:
    """Do something, and press Ctrl-C at a line of it, counted from 1."""
    _traced(line, act)


def _traced(at: int | None, act: Callable[[], object]) -> int:
    tracer, before = _Tracer(at), sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    finally:
        sys.settrace(before)
    return tracer.lines
