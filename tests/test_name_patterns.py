"""Tests of matching names against many regular expressions."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from secateur._name_patterns import find_pattern, matches_any

PARTS = st.sampled_from(["a", "b", "0", ".", r"\.", "-", "/", ".*", r"\d+", "[ab]", "a?", "(a|b)"])
PATTERNS = st.lists(PARTS, min_size=1, max_size=5).map("".join)
NAMES = st.text("ab0.-/", min_size=1, max_size=5)


@given(st.lists(PATTERNS, max_size=6), st.lists(NAMES, min_size=1, max_size=2))
@example(["a.0", "axo"], ["axo"])
@example([r"a\.0", "a.0"], ["a.0"])
@example(["b.*", "b", "a"], ["b"])
@example(["a", "b"], ["b", "a"])
def test_the_first_match_is_found(patterns: list[str], names: list[str]) -> None:
    matches = (pattern for pattern in patterns if any(re.fullmatch(pattern, name) for name in names))
    assert find_pattern(patterns, *names) == next(matches, None)


@given(PATTERNS, st.sets(NAMES, max_size=6))
def test_a_match_with_any_name_is_found(pattern: str, names: set[str]) -> None:
    assert matches_any(pattern, names) == any(re.fullmatch(pattern, name) for name in names)
