"""Measure the median time of functions that are called in turn, so that other programs slow down all of them alike."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

__all__ = ["Seconds", "measure_wall_and_cpu_seconds", "measure_wall_seconds", "parse_options"]


class Seconds(NamedTuple):
    """Median wall time, and median CPU time of all threads, in seconds."""

    wall: float
    cpu: float


def measure_wall_seconds(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Measure the median wall time of each candidate, after a warm-up round."""
    return {name: seconds.wall for name, seconds in measure_wall_and_cpu_seconds(candidates, rounds).items()}


def measure_wall_and_cpu_seconds(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Seconds]:
    """Measure the median wall and CPU time of each candidate, after a warm-up round."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        for name, call in candidates.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            call()
            wall = time.perf_counter() - wall_start
            if round_number:
                seconds[name].append(Seconds(wall, time.process_time() - cpu_start))
    return {name: Seconds(*map(statistics.median, zip(*values, strict=True))) for name, values in seconds.items()}


def parse_options(description: str | None, rounds: int) -> argparse.Namespace:
    """Parse ``--rounds`` and ``--threads``, and set the number of threads and the seed of torch."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return arguments
