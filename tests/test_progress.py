"""Tests of how the progress of long work is shown: a bar in terminals, a line at intervals elsewhere."""

import io
import sys
import time
from threading import enumerate as list_threads
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import secateur
from secateur import _progress
from secateur._progress import ProgressDisplay
from secateur.oneshot import Progress


def show(*, in_terminal: bool, interval: float = 60.0) -> str:
    file = io.StringIO()
    with ProgressDisplay(Console(file=file, force_terminal=in_terminal, width=100), interval) as display:
        display.begin("Reading m")
        for done in (1, 2):
            display.show_part(
                Progress(stage=f"layers.{done}", done=done, total=2, seconds=61.0, seconds_left=61.0 * (2 - done))
            )
            display._bars.refresh()
            wait_for_a_line(file, interval)
        display.begin("Writing out", total=3)
        display.advance("Writing more")
        display._bars.refresh()
        wait_for_a_line(file, interval)
    return file.getvalue()


def wait_for_a_line(file: io.StringIO, interval: float) -> None:
    lines = file.getvalue().count("\n")
    while interval < 1 and file.getvalue().count("\n") < lines + 2:
        time.sleep(interval / 4)


def test_a_terminal_shows_the_part_and_the_time_left() -> None:
    text = show(in_terminal=True)
    assert "Pruned layers.1" in text
    assert "50%" in text
    assert "1:01 left" in text
    assert "0:00 left" not in text
    assert "33%" in text[text.index("Writing more") :]
    assert "Reading m:" not in text


def test_short_work_shows_nothing_outside_terminals() -> None:
    assert show(in_terminal=False) == ""


def test_long_work_shows_lines_outside_terminals() -> None:
    lines = show(in_terminal=False, interval=0.01).splitlines()
    assert "Reading m: 1 of 2 parts, 0:00 elapsed, 1:01 left" in lines
    assert "Reading m: 2 of 2 parts, 0:00 elapsed" in lines
    assert lines[-1] == "Writing more: 1 of 3, 0:00 elapsed"


def test_the_thread_ends_with_the_work() -> None:
    def work() -> None:
        with ProgressDisplay(Console(file=io.StringIO()), 60.0):
            assert "secateur-progress" in {thread.name for thread in list_threads()}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert "secateur-progress" not in {thread.name for thread in list_threads()}


def test_a_closed_stream_does_not_stop_the_work() -> None:
    file = io.StringIO()
    with ProgressDisplay(Console(file=file), 0.001) as display:
        display.begin("Reading m")
        file.close()
        time.sleep(0.01)
        assert display._thread.is_alive()


def test_names_in_the_bar_are_escaped_and_shortened() -> None:
    file = io.StringIO()
    with ProgressDisplay(Console(file=file, force_terminal=True, width=200, color_system=None)) as display:
        for name in ("\x1b]0;owned\x07", "[link=https://example.org]x[/link] [/]", "x" * 100_000):
            display.begin(name)
            display._bars.refresh()
            display.show_part(Progress(stage=name, done=1, total=2, seconds=1.0, seconds_left=1.0))
            display._bars.refresh()
    text = file.getvalue()
    assert "\x1b]" not in text
    assert r"\x1b]0;owned\x07" in text
    assert "[link=https://example.org]x[/link] [/]" in text
    assert len(text) < 50_000


class SlowBlock(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as in torch
        time.sleep(0.02)
        return super().forward(input)


@pytest.mark.parametrize("calibration", [None, [torch.randn(8, 8, generator=torch.Generator().manual_seed(0))]])
def test_prune_shows_its_progress_on_request(calibration: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "LINE_INTERVAL", 0.001)
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    model = nn.Sequential(*(SlowBlock(8, 8) for _ in range(4)))
    options = {} if calibration is None else {"calibration": calibration, "solver": "wanda"}
    secateur.prune(model, {"pattern": "2:4"}, **options)
    assert file.getvalue() == ""
    secateur.prune(model, {"pattern": "2:4"}, progress=True, **options)
    lines = file.getvalue().splitlines()
    assert all(line.startswith("Pruning Sequential: ") for line in lines)
    if calibration is not None:
        assert any(" parts, " in line for line in lines)


def test_a_callback_is_kept() -> None:
    parts: list[Progress] = []
    execution = secateur.Execution(progress=parts.append)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    batches = [torch.randn(8, 8, generator=torch.Generator().manual_seed(0))]
    secateur.prune(model, {"pattern": "2:4"}, calibration=batches, solver="wanda", execution=execution, progress=True)
    assert parts
