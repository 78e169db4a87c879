"""Defer Ctrl-C while a model is between two states.

A `KeyboardInterrupt` can come between any two instructions, also within a ``finally`` block that puts things back.
So under `defer_interrupts` one is raised only inside `allow_interrupts`: in a forward pass, a solver, a callback.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["allow_interrupts", "defer_interrupts"]


class _Deferral:
    """The handler of ``SIGINT`` in one ``with defer_interrupts()``.

    Attributes:
        handle_now: The handler before, which is called where an interrupt may be raised.
        is_pending: Whether an interrupt waits.
        is_allowed: Whether it may be raised now.
    """

    def __init__(self, handle_now: Callable[[int, FrameType | None], Any]) -> None:
        self.handle_now = handle_now
        self.is_pending = False
        self.is_allowed = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal, or note it."""
        if not self.is_allowed:
            self.is_pending = True
            return
        self.is_allowed = False  # before anything is raised: what runs then is clean-up
        self.handle_now(number, frame)
        self.is_allowed = True

    def allow(self) -> None:
        """Handle the signal that waits, and those to come."""
        self.is_allowed = True
        if self.is_pending:
            self.is_pending = False
            self.handle(signal.SIGINT, None)


_active: list[_Deferral] = []
"""Of the main thread, the only one in which Python handles signals; the innermost is the last."""


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait until `allow_interrupts`, or the end of this.

    Nothing changes in other threads, and where the program ignores the signal.
    """
    before = signal.getsignal(signal.SIGINT) if _is_main_thread() else None
    if not callable(before):
        yield
        return
    deferral = _Deferral(before)
    signal.signal(signal.SIGINT, deferral.handle)
    _active.append(deferral)
    try:
        yield
    except KeyboardInterrupt:
        deferral.is_pending = False  # it is on its way
        raise
    finally:
        _active.remove(deferral)
        if signal.getsignal(signal.SIGINT) == deferral.handle:
            signal.signal(signal.SIGINT, before)
        if deferral.is_pending:
            before(signal.SIGINT, None)


@contextmanager
def allow_interrupts() -> Iterator[None]:
    """Raise a `KeyboardInterrupt` at once while this is open; for long work that leaves nothing half done."""
    if not (_active and _is_main_thread()):
        yield
        return
    deferral = _active[-1]
    try:
        deferral.allow()
        yield
    finally:
        deferral.is_allowed = False


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
