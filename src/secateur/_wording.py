"""Phrases that errors and tables share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["counted", "listed", "nearest"]


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "layer"), counted(1200, "layer")
        ('1 layer', '1,200 layers')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(items: Iterable[str], most: int = 8) -> str:
    """Items for an error message, and how many more there are than it shows.

    Example:
        >>> listed(["a", "b", "c"], most=2), listed(["a", "b"], most=2)
        ('a, b and 1 more', 'a, b')
    """
    found = list(items)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion for a misspelled `name`, as the tail of an error message.

    Example:
        >>> nearest("cubik", ["cubic", "linear"])
        " Did you mean 'cubic'?"
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
