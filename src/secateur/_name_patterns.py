"""Match the names of layers against many regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from functools import lru_cache

__all__ = ["find_pattern", "matches_any"]

PLAIN = re.compile(r"(?:[\w./-]|\\\.)+")
"""Matches expressions that are plain names, as most are. Thousands of them are looked up at a time."""


def find_pattern(patterns: Iterable[str], *names: str) -> str | None:
    r"""Return the first expression that matches one of the names of a layer as a whole; ``None``: there is none.

    Examples:
        >>> find_pattern(["head", "layers.[0-3]", ".*"], "layers.3")
        'layers.[0-3]'
    """
    pattern_list = _PatternList.create(tuple(patterns))
    index = min(pattern_list.find(name) for name in names)
    return pattern_list.patterns[index] if index < len(pattern_list.patterns) else None


def matches_any(pattern: str, names: Set[str]) -> bool:
    r"""Whether an expression matches one of the names as a whole.

    Examples:
        >>> matches_any(r"encoder\.\d", {"encoder.0"}), matches_any("encoder", {"encoder.0"})
        (True, False)
    """
    if PLAIN.fullmatch(pattern) and pattern.replace("\\.", ".") in names:
        return True
    expression = re.compile(pattern)
    return any(expression.fullmatch(name) for name in names)


class _PatternList:
    """Expressions in order.

    Attributes:
        plain: (Length, positions of wildcards) → expression without regular syntax, wildcards as dots → its index.
        others: Index and expression of all others.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns
        self.plain: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self.others: list[tuple[int, re.Pattern[str]]] = []
        for index, pattern in enumerate(patterns):
            if PLAIN.fullmatch(pattern) is None:
                self.others.append((index, re.compile(pattern)))
                continue
            characters = re.findall(r"\\?.", pattern)
            wildcards = tuple(position for position, character in enumerate(characters) if character == ".")
            text = "".join(character[-1] for character in characters)
            self.plain.setdefault((len(text), wildcards), {}).setdefault(text, index)

    @classmethod
    @lru_cache(maxsize=64)
    def create(cls, patterns: tuple[str, ...]) -> _PatternList:
        """Return the list for some expressions, which is kept for the next call."""
        return cls(patterns)

    def find(self, name: str) -> int:
        """Return the index of the first expression that matches a whole name, or the number of expressions."""
        end = len(self.patterns)
        for (length, wildcards), indices in self.plain.items():
            if length == len(name):
                end = min(end, indices.get(_replace_characters(name, wildcards), end))
        return next((index for index, pattern in self.others if index < end and pattern.fullmatch(name)), end)


def _replace_characters(name: str, positions: tuple[int, ...]) -> str:
    """Replace the characters at some positions with dots."""
    characters = list(name)
    for position in positions:
        characters[position] = "."
    return "".join(characters)
