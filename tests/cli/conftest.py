"""Fixtures for tests of the command line."""

from pathlib import Path

import pytest

from cli.kit import CODE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a current directory with a module that builds networks."""
    (tmp_path / "cli_nets.py").write_text(CODE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("secateur.runtime.pytorch.baselines.MAX_COMPILED_MODULES", 0)  # compiling takes seconds
    return tmp_path
