"""Shorten names in tables: join those that differ in numbers only, and cut long ones in the middle."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import prod

__all__ = ["cut_names", "join_names", "split_name"]

HEADS = (1 / 3, 1 / 2, 2 / 3)
"""Shares of a cut name to keep at its start. The first share that keeps the most names distinct is used."""

NUMBER = re.compile(r"(?<![^./])(?:0|[1-9][0-9]{0,9})(?![^./])")
"""Matches a part of a name that is a number, such as the number of a block; numbers with leading zeros are not."""

MAX_NUMBERS = 8
"""Names with more numbers are not split."""


def split_name(name: str) -> tuple[str, tuple[int, ...]]:
    r"""Split a name without NUL characters into a template for `join_names`, and its numbers.

    Examples:
        >>> split_name("layers.3.fc")
        ('layers.\x00.fc', (3,))
    """
    numbers = NUMBER.findall(name)
    return (NUMBER.sub("\0", name), tuple(map(int, numbers))) if len(numbers) <= MAX_NUMBERS else (name, ())


def join_names(template: str, numbers: Sequence[tuple[int, ...]]) -> list[str]:
    r"""Write names that differ in numbers only as few names with ranges.

    Args:
        template: The names with a NUL character in place of each number.
        numbers: The numbers of each name, in order.

    Examples:
        >>> join_names("layers.\0.fc", [(0,), (1,), (2,), (5,)])
        ['layers.{0–2,5}.fc']
    """
    values = [list(dict.fromkeys(column)) for column in zip(*numbers, strict=True)]
    if prod(map(len, values)) == len(numbers):
        ranges = iter(_format_numbers(column) for column in values)
        return [re.sub("\0", lambda _: next(ranges), template)]
    rest: dict[int, list[tuple[int, ...]]] = {}
    for first, *others in numbers:
        rest.setdefault(first, []).append(tuple(others))
    return [name for first, rows in rest.items() for name in join_names(template.replace("\0", str(first), 1), rows)]


def _format_numbers(numbers: Iterable[int]) -> str:
    """Format numbers as ranges, in braces if there are several."""
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return str(ordered[0])
    runs = [[number for _, number in run] for _, run in groupby(enumerate(ordered), lambda entry: entry[1] - entry[0])]
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs) + "}"


def cut_names(names: Iterable[str], width: int) -> dict[str, str]:
    """Cut names that are longer than `width` characters in the middle, if they stay distinct.

    Returns:
        Name → what to show of it.
    """
    unique = list(dict.fromkeys(names))
    cut = min(({name: _cut_middle(name, width, head) for name in unique} for head in HEADS), key=_count_bad_cuts)
    counts = Counter(cut.values())
    return {name: short if counts[short] == 1 else name for name, short in cut.items()}


def _count_bad_cuts(cut: Mapping[str, str]) -> int:
    """Count the names that are no longer unique, or whose ranges of numbers are cut."""
    counts = Counter(cut.values())
    return sum(counts[short] > 1 or short.count("{") != short.count("}") for short in cut.values())


def _cut_middle(text: str, width: int, head_share: float) -> str:
    """Shorten a text in the middle, keeping this share of the characters at its start.

    Examples:
        >>> _cut_middle("encoder.layer.0.attention.self.query", 24, 1 / 3)
        'encoder…ntion.self.query'
    """
    if len(text) <= width:
        return text
    head = int((width - 1) * head_share)
    return f"{text[:head]}…{text[head + 1 - width :]}"
