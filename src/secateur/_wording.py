"""Phrases that errors and tables share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from reprlib import Repr
from typing import Any

__all__ = ["brief", "counted", "listed", "nearest"]

LONGEST_NAME = 100
"""Characters of a name that can be a misspelled one."""

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = LONGEST_NAME


def brief(found: Any) -> str:
    r"""What was found, as Python writes it, but short, whatever it is: texts, lists and nesting are cut.

    Example:
        >>> brief([1] * 1000), brief("\n")
        ('[1, 1, 1, 1, 1, 1, ...]', "'\\n'")
    """
    return _REPR.repr(found)


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
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6) if len(name) <= LONGEST_NAME else []
    return f" Did you mean {matches[0]!r}?" if matches else ""
