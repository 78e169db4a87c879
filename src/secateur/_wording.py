"""Format values, names and lists for error messages and tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from reprlib import Repr
from typing import Any

__all__ = [
    "MAX_LINE",
    "MAX_MESSAGE",
    "format_count",
    "format_list",
    "format_reasons",
    "format_value",
    "make_printable",
    "make_printable_line",
    "suggest_name",
]

MAX_MESSAGE = 4_000
"""Maximum length of a message, in characters."""

MAX_LINE = 1_000
"""Maximum length of a title or a table cell, in characters."""

MAX_NAME = 100
"""Maximum length of a name for which a similar one is suggested, in characters."""

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = MAX_NAME


def format_value(value: Any) -> str:
    r"""Format a value like ``repr``, but shorten long strings, long lists and deep nesting.

    Examples:
        >>> format_value([1] * 1000), format_value("\n")
        ('[1, 1, 1, 1, 1, 1, ...]', "'\\n'")
    """
    return _REPR.repr(value)


def format_count(count: int, noun: str) -> str:
    """Format a number with its noun in the singular or plural.

    Examples:
        >>> format_count(1, "layer"), format_count(1200, "layer")
        ('1 layer', '1,200 layers')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_list(items: Iterable[str], limit: int = 8) -> str:
    """Join items for an error message, followed by the number of those left out.

    Examples:
        >>> format_list(["a", "b", "c"], limit=2), format_list(["a", "b"], limit=2)
        ('a, b and 1 more', 'a, b')
    """
    texts = list(items)
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def format_reasons(reasons: Iterable[tuple[str, str]], limit: int = 12) -> str:
    """List names with the same reason on one line, for an error message about many layers.

    Examples:
        >>> print(format_reasons([("a", "is frozen"), ("b", "is tied"), ("c", "is frozen")]))
          a, c: is frozen
          b: is tied
    """
    groups: dict[str, list[str]] = {}
    for name, reason in reasons:
        groups.setdefault(reason, []).append(name)
    lines = [f"  {format_list(names, limit=4)}: {reason}" for reason, names in groups.items()]
    left_out = [f"  and {len(lines) - limit} other reasons"] if len(lines) > limit else []
    return "\n".join([*lines[:limit], *left_out])


def format_shape(shape: Iterable[int]) -> str:
    """Format the shape of an array.

    Examples:
        >>> format_shape((32, 16))
        '32×16'
    """
    return "×".join(map(str, shape))


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for the end of an error message: the most similar known name, if there is one.

    Examples:
        >>> suggest_name("cubik", ["cubic", "linear"])
        " Did you mean 'cubic'?"
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6) if len(name) <= MAX_NAME else []
    return f" Did you mean {matches[0]!r}?" if matches else ""


def make_printable(text: str, limit: int = MAX_MESSAGE) -> str:
    r"""Make text from a file or an exception safe to print.

    Control characters, surrogates, and characters that are invisible or change the writing direction are escaped as in
    a Python literal. Line breaks stay, and a tab becomes four spaces. Longer texts are shortened in the middle.

    Args:
        text: The text.
        limit: Maximum length of the result, in characters.

    Examples:
        >>> print(make_printable("a name that clears the screen: \x1b[2J"))
        a name that clears the screen: \x1b[2J
        >>> make_printable("0123456789" * 1000, limit=60)
        '0123456789012345 … (10,000 characters, shortened) … 23456789'
    """
    if len(text) <= limit and len(escaped := _escape(text)) <= limit:
        return escaped
    mark = f" … ({len(text):,} characters, shortened) … "
    tail = (limit - len(mark)) // 3
    head = limit - len(mark) - tail
    return _escape(text[:limit])[:head] + mark + _escape(text[-limit:])[-tail:]


def make_printable_line(text: str, limit: int = MAX_LINE) -> str:
    r"""Make text safe to print on one line: line breaks are escaped too.

    Examples:
        >>> print(make_printable_line("a name\nof two lines"))
        a name\nof two lines
    """
    return make_printable(text.replace("\r", "\\r").replace("\n", "\\n"), limit)


def _escape(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text
    )
