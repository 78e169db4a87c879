"""Medians of runs that take turns, so that a noisy neighbour slows all of them alike."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

__all__ = ["Seconds", "medians", "medians_on_both_clocks", "options"]


class Seconds(NamedTuple):
    """Median seconds: on the wall, and of the CPU in all threads."""

    wall: float
    cpu: float


def medians(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate on the wall, after one round that does not count."""
    return {name: seconds.wall for name, seconds in medians_on_both_clocks(candidates, rounds).items()}


def medians_on_both_clocks(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Seconds]:
    """Median seconds of each candidate, after one round that does not count."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, work in candidates.items():
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            taken = time.perf_counter() - wall
            if turn:
                seconds[name].append(Seconds(taken, time.process_time() - cpu))
    return {name: Seconds(*map(statistics.median, zip(*values, strict=True))) for name, values in seconds.items()}


def options(description: str | None, rounds: int) -> argparse.Namespace:
    """``--rounds`` and ``--threads`` of a benchmark's command line; sets torch's threads and seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return given
