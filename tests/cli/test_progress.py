"""Tests of the progress bar, which is only shown in terminals."""

import io

from rich.console import Console

from secateur.cli.progress import Steps
from secateur.oneshot import Progress


def record_bar(*, in_terminal: bool) -> str:
    file = io.StringIO()
    with Steps(Console(file=file, force_terminal=in_terminal, width=100)) as steps:
        steps.begin("Reading m")
        for done in (1, 2):
            steps.show_part(
                Progress(stage=f"layers.{done}", done=done, total=2, seconds=61.0, seconds_left=61.0 * (2 - done))
            )
            steps._bars.refresh()
        steps.begin("Writing out")
        steps._bars.refresh()
    return file.getvalue()


def test_a_terminal_shows_the_part_and_the_time_left() -> None:
    text = record_bar(in_terminal=True)
    assert "Pruned layers.1" in text
    assert "50%" in text
    assert "1:01 left" in text
    assert "0:00 left" not in text
    assert "%" not in text[text.index("Writing out") :]


def test_a_file_shows_nothing() -> None:
    assert record_bar(in_terminal=False).strip() == ""


def test_names_in_the_bar_are_escaped_and_shortened() -> None:
    file = io.StringIO()
    with Steps(Console(file=file, force_terminal=True, width=200, color_system=None)) as steps:
        for name in ("\x1b]0;owned\x07", "[link=https://example.org]x[/link] [/]", "x" * 100_000):
            steps.begin(name)
            steps._bars.refresh()
            steps.show_part(Progress(stage=name, done=1, total=2, seconds=1.0, seconds_left=1.0))
            steps._bars.refresh()
    text = file.getvalue()
    assert "\x1b]" not in text
    assert r"\x1b]0;owned\x07" in text
    assert "[link=https://example.org]x[/link] [/]" in text
    assert len(text) < 50_000
