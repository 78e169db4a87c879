"""What happens to a program between two of its steps: others change files, an interrupt, an error of the system."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, FunctionType
from typing import Any, TypeAlias

__all__ = ["after_calls", "before_calls", "raising"]

Action: TypeAlias = Callable[[Mapping[str, Any]], object]
"""Takes the local variables of a call, by name."""


@contextmanager
def before_calls(function: Callable[..., Any], action: Action) -> Iterator[None]:
    """Act at the start of each call of a function in this thread.

    If `action` raises, so does the call, and later calls are left alone.

    Args:
        function: A function or a method in Python, wherever it is called.
        action: What happens then. Calls that it makes itself do not count.
    """
    with _at_events("call", function, action):
        yield


@contextmanager
def after_calls(function: Callable[..., Any], action: Action) -> Iterator[None]:
    """Act at the end of each call of a function in this thread; see `before_calls`."""
    with _at_events("return", function, action):
        yield


def raising(error: BaseException) -> Action:
    """Return an action that raises."""

    def act(_: Mapping[str, Any]) -> None:
        raise error

    return act


@contextmanager
def _at_events(kind: str, function: Callable[..., Any], action: Action) -> Iterator[None]:
    function = inspect.unwrap(function)
    assert isinstance(function, FunctionType)
    code = function.__code__

    def observe(frame: FrameType, event: str, _: Any) -> None:
        if event == kind and frame.f_code is code:
            action(frame.f_locals)

    sys.setprofile(observe)
    try:
        yield
    finally:
        sys.setprofile(None)
