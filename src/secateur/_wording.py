"""Phrases that errors and tables share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from reprlib import Repr
from typing import Any

__all__ = ["MAX_LINE", "MAX_MESSAGE", "brief", "counted", "listed", "nearest", "printable", "printable_line"]

MAX_MESSAGE = 4_000
"""Characters of a message that a person reads."""

MAX_LINE = 1_000
"""Characters of a title, or of a cell of a table."""

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


def printable(text: str, most: int = MAX_MESSAGE) -> str:
    r"""Text that is safe to print, whatever file or exception it comes from.

    Control characters, surrogates, and characters that are invisible or change the direction of writing are escaped as
    in a Python literal. Lines stay lines, and a tab becomes four spaces. Of longer texts, the middle is left out.

    Args:
        text: Any text.
        most: Characters of the result, at the most.

    Example:
        >>> print(printable("a name that clears the screen: \x1b[2J"))
        a name that clears the screen: \x1b[2J
        >>> printable("0123456789" * 1000, most=60)
        '0123456789012345 … (10,000 characters, shortened) … 23456789'
    """
    if len(text) <= most and len(escaped := _escape(text)) <= most:
        return escaped
    mark = f" … ({len(text):,} characters, shortened) … "
    tail = (most - len(mark)) // 3
    head = most - len(mark) - tail
    return _escape(text[:most])[:head] + mark + _escape(text[-most:])[-tail:]


def printable_line(text: str, most: int = MAX_LINE) -> str:
    r"""The same in one line: ends of lines are escaped too.

    Example:
        >>> print(printable_line("a name\nof two lines"))
        a name\nof two lines
    """
    return printable(text.replace("\r", "\\r").replace("\n", "\\n"), most)


def _escape(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text
    )
