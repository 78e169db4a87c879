"""Threads for kernels, whatever the machine has."""

import ctypes
from pathlib import Path

import pytest
import torch

from secateur.runtime.kernels.threading import executor
from secateur.runtime.kernels.threading.executor import Workforce
from secateur.runtime.kernels.threading.openmp import Team

PLACES = 8


@pytest.fixture(scope="session")
def team() -> Team:
    """That of torch's OpenMP runtime."""
    file = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    found = Team.of(ctypes.CDLL(str(file))) if file.exists() else None
    if found is None:
        pytest.skip("needs a torch with an OpenMP runtime that can be asked for its threads")
    return found


@pytest.fixture(params=["team", "helpers"])
def shared_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All work is shared out among as many threads as are allowed, by either means."""
    means = request.getfixturevalue("team") if request.param == "team" else None
    monkeypatch.setattr(executor, "_workforce", Workforce(PLACES, means))
    monkeypatch.setattr(Workforce, "useful", lambda _, __, threads: threads)
