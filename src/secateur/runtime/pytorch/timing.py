"""Which of two is faster, on a machine that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

__all__ = ["medians"]

BUDGET = 0.15
"""Seconds that a comparison may take, beyond the fewest rounds."""

FEWEST, MOST = 5, 200
"""Rounds of a comparison."""


def medians(calls: Sequence[Callable[[], object]], device: torch.device, budget: float = BUDGET) -> list[float]:
    """Median seconds of each call; they take turns, so that what else happens meets all alike.

    Args:
        calls: What to time.
        device: Where it runs; a GPU is waited for.
        budget: Seconds to spend.
    """
    for call in calls:
        call()  # code is made, memory is found
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    for number in range(MOST):
        if number >= FEWEST and time.perf_counter() - start > budget:
            break
        for own, call in zip(times, calls, strict=True):
            own.append(_seconds(call, device))
    return [median(own) for own in times]


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
