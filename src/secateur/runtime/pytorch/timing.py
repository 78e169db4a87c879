"""Which of two is faster, on a machine that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch

__all__ = ["medians", "rounds", "seconds"]

BUDGET = 0.15
"""Seconds that a comparison may take, beyond the fewest rounds."""

FEWEST, MOST = 5, 200
"""Rounds of a comparison."""

FILLED, MOST_CALLS = 2e-3, 50
"""Seconds, and calls, between two waits for a GPU, which works on one call while the next is made."""


def medians(
    calls: Sequence[Callable[[], object]], device: torch.device, budget: float = BUDGET, *, cuda_graph: bool = False
) -> list[float]:
    """Median seconds of each call; they take turns, so that what else happens meets all alike.

    Args:
        calls: What to time.
        device: Where it runs. A GPU is given many calls at once, as a model gives them: what counts is the slower of
            making a call and of working on it.
        budget: Seconds to spend.
        cuda_graph: Whether a graph makes the calls, so that only the work on them counts. None may wait for the GPU:
            torch cannot make random numbers any more after a capture that failed.
    """
    for call in calls:
        call()  # code is made, memory is found
    together = max(_enough(call, device) for call in calls) if device.type == "cuda" else 1
    runs = [_graph(call, together) if cuda_graph else _repeated(call, together) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in rounds(budget):
        for own, run in zip(times, runs, strict=True):
            own.append(seconds(run, device) / together)
    return [median(own) for own in times]


def rounds(budget: float) -> Iterator[int]:
    """Rounds of a comparison, from 0, as many as fit into a budget of seconds."""
    start = time.perf_counter()
    for number in range(MOST):
        if number >= FEWEST and time.perf_counter() - start > budget:
            return
        yield number


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """What a call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _enough(call: Callable[[], object], device: torch.device) -> int:
    return max(1, min(MOST_CALLS, int(FILLED / seconds(call, device))))


def _repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            call()

    return call if times == 1 else run


def _graph(call: Callable[[], object], times: int) -> Callable[[], object]:
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        _repeated(call, times)()
    return graph.replay
