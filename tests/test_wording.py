"""Tests of text that is safe to print."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur._table import Table
from secateur._wording import MAX_LINE, MAX_MESSAGE, make_printable, make_printable_line
from secateur.errors import ArtifactError, MissingPackageError, SecateurError, UnknownNameError

HOSTILE = {
    "clear screen": "\x1b[2J",
    "set the title": "\x1b]0;owned\x07",
    "overwrite the line": "sound\rdamaged",
    "backspace": "a\b\b\b",
    "C1": "\x9b2J",
    "delete": "\x7f",
    "NUL": "\0",
    "right to left": "\u202egnp.exe",
    "isolate": "\u2066a\u2069",
    "zero width": "a\u200bb\ufeff",
    "surrogate": "\udcff",
    "line separator": "a\u2028b",
    "unassigned": "\U000e0fff",
    "tag": "\U000e0041",
}


def is_safe(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_names_that_control_a_terminal_are_escaped(name: str) -> None:
    assert not is_safe(name)
    assert is_safe(make_printable(name))
    table = Table(title=name, columns=("name", "reason"), rows=[(name, name)], footer=[name])
    assert is_safe(table.text())
    error = ArtifactError(f"{name}: damaged")
    error.add_note(name)
    assert is_safe(str(error))
    assert is_safe(error.__notes__[0])
    assert error.args == (f"{name}: damaged",)


@given(st.text(st.characters(), max_size=100), st.integers(60, 200))
def test_make_printable_is_safe_short_and_idempotent(text: str, most: int) -> None:
    shown = make_printable(text, limit=most)
    assert is_safe(shown)
    assert len(shown) <= most
    assert make_printable(shown, limit=most) == shown
    assert "\n" not in make_printable_line(text)


@pytest.mark.parametrize("text", ["2:4 × 16 → “kept”, naïve, 日本語, 🌿\nsecond line", "", "x" * MAX_MESSAGE])
def test_printable_text_is_unchanged(text: str) -> None:
    assert make_printable(text) == text


@pytest.mark.parametrize("character", ["x", "\x1b", "\U000e0041", "\n"])
def test_long_texts_are_shortened_in_the_middle(character: str) -> None:
    text = "start" + character * 16_000_000 + "end"
    start = time.process_time()  # not wall time, because the machine may be busy
    shown = str(SecateurError(text))
    assert time.process_time() - start < 1
    assert len(shown) == MAX_MESSAGE
    assert re.fullmatch(r"start.*… \(16,000,008 characters, shortened\) ….*end", shown, re.DOTALL)


def test_messages_of_errors_are_safe() -> None:
    assert str(UnknownNameError("no '\x1b'")) == r"no '\x1b'"
    assert str(MissingPackageError("no '\x1b'", name="x")) == r"no '\x1b'"


def test_names_in_tables_are_escaped_and_shortened() -> None:
    name = "fc\nfc2  sound"
    table = Table(title="t", columns=("name", "reason"), rows=[(name, "first\nsecond"), ("x" * 100_000, "")])
    text = table.text()
    assert r"fc\nfc2  sound" in text
    assert len(text) < 3 * MAX_LINE


def test_markup_in_names_is_printed_verbatim() -> None:
    name = "[bold]fc[/bold] [link=https://example.org]x[/link] [/]"
    assert name in Table(title=name, columns=("name", "reason"), rows=[(name, name)]).text(width=400)
