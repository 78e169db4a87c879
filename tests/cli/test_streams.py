"""Standard output that is closed, or whose reader has gone."""

import os
import sys

import pytest

from secateur.cli.streams import flush_stdout, prepare_streams


def test_closed_streams_discard_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    prepare_streams()
    assert sys.stdout.name == os.devnull
    sys.stdout.write("discarded\u2713")
    sys.stdout.close()
    flush_stdout()  # a stream that was closed in between is left alone


def test_a_reader_that_has_gone_is_no_error_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w", encoding="utf-8"))
    sys.stdout.write("lost")
    flush_stdout()
    sys.stdout.close()  # as Python does at exit
