"""Print messages to standard error."""

from __future__ import annotations

import sys

from secateur._wording import make_printable

__all__ = ["say"]


def say(text: str) -> None:
    """Print a message to standard error after escaping control characters."""
    from rich.console import Console

    Console(file=sys.stderr).print(make_printable(text), highlight=False, markup=False, soft_wrap=True)
