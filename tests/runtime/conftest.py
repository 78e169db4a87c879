"""Fixtures that give kernels threads, regardless of the number of processors."""

import ctypes
from pathlib import Path

import pytest
import torch

from secateur.runtime.kernels.threading import KernelExecutor, executor
from secateur.runtime.kernels.threading.openmp import OpenMPTeam

MAX_THREADS = 8


class EagerExecutor(KernelExecutor):
    """Uses all threads, however little there is to do."""

    def count_useful_threads(self, seconds: float, threads: int) -> int:  # noqa: ARG002
        return threads


@pytest.fixture(scope="session")
def team() -> OpenMPTeam:
    """The team of torch's OpenMP runtime."""
    file = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    team = OpenMPTeam.from_library(ctypes.CDLL(str(file))) if file.exists() else None
    if team is None:
        pytest.skip("needs a torch with a supported OpenMP runtime")
    return team


@pytest.fixture(params=["team", "pool"])
def all_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let products use their maximum number of threads, of an OpenMP team or of a thread pool."""
    team = request.getfixturevalue("team") if request.param == "team" else None
    monkeypatch.setattr(executor, "_executor", EagerExecutor(MAX_THREADS, team))
