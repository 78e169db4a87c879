"""Defer Ctrl-C while a model is in an inconsistent state.

A `KeyboardInterrupt` can be raised between any two instructions, even in a ``finally`` block that restores state. Under
`defer_interrupts` it is therefore raised only inside `allow_interrupts`: in a forward pass, a solver or a callback.
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
    """The handler of ``SIGINT`` during one ``with defer_interrupts()``.

    Attributes:
        handle_now: The previous handler, called where interrupts are allowed.
        is_pending: Whether an interrupt is waiting.
        is_allowed: Whether interrupts may be raised now.
    """

    def __init__(self, handle_now: Callable[[int, FrameType | None], Any]) -> None:
        self.handle_now = handle_now
        self.is_pending = False
        self.is_allowed = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal, or remember it."""
        if not self.is_allowed:
            self.is_pending = True
            return
        self.is_allowed = False  # before raising, because cleanup code runs next
        self.handle_now(number, frame)
        self.is_allowed = True

    def allow(self) -> None:
        """Handle a pending signal, and later ones immediately."""
        self.is_allowed = True
        if self.is_pending:
            self.is_pending = False
            self.handle(signal.SIGINT, None)


_active: list[_Deferral] = []
"""The deferrals of the main thread, the only one that handles signals in Python; the innermost is last."""


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Defer Ctrl-C until `allow_interrupts`, or until the end of the context.

    Has no effect in other threads, or if the program ignores the signal.
    """
    previous = signal.getsignal(signal.SIGINT) if _is_main_thread() else None
    if not callable(previous):
        yield
        return
    deferral = _Deferral(previous)
    signal.signal(signal.SIGINT, deferral.handle)
    _active.append(deferral)
    try:
        yield
    except KeyboardInterrupt:
        deferral.is_pending = False  # already being raised
        raise
    finally:
        _active.remove(deferral)
        if signal.getsignal(signal.SIGINT) == deferral.handle:
            signal.signal(signal.SIGINT, previous)
        if deferral.is_pending:
            previous(signal.SIGINT, None)


@contextmanager
def allow_interrupts() -> Iterator[None]:
    """Raise a `KeyboardInterrupt` immediately inside this context, for long work that leaves no inconsistent state."""
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
