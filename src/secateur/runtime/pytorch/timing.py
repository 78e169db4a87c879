"""Time calls on a machine that also runs other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter
from typing import TypeAlias

import torch

__all__ = ["Clock", "count_rounds", "measure_medians", "time_call"]

Clock: TypeAlias = Callable[[], float]
"""Returns the current time in seconds, such as `time.perf_counter`."""

BUDGET = 0.15
"""Seconds that a comparison may take, beyond the minimum number of rounds."""

MIN_ROUNDS, MAX_ROUNDS = 5, 200
"""Rounds of a comparison."""

GPU_SECONDS, MAX_GPU_CALLS = 2e-3, 50
"""Seconds, and calls, between two synchronizations with a GPU, which runs one call while the next is launched."""


def measure_medians(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    budget: float = BUDGET,
    *,
    cuda_graph: bool = False,
    clock: Clock = perf_counter,
) -> list[float]:
    """Measure the median time of each call, in seconds; calls alternate, so that all see the same disturbances.

    Args:
        calls: The functions to time.
        device: The device that they run on. On a GPU, many calls are launched at once, as a model does: what counts is
            the slower of launching and running them.
        budget: Seconds to spend.
        cuda_graph: Capture the calls in a CUDA graph, so that only their time on the GPU counts. None may synchronize
            with the GPU: after a failed capture, torch cannot generate random numbers any more.
        clock: Returns the time.
    """
    for call in calls:
        call()  # compiles code and allocates memory
    repeats = max(_count_gpu_calls(call, device, clock) for call in calls) if device.type == "cuda" else 1
    runs = [_capture(call, repeats) if cuda_graph else _repeat(call, repeats) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in count_rounds(budget, clock):
        for samples, run in zip(times, runs, strict=True):
            samples.append(time_call(run, device, clock) / repeats)
    return [median(samples) for samples in times]


def count_rounds(budget: float, clock: Clock) -> Iterator[int]:
    """Count the rounds of a comparison from 0, as many as fit into a budget in seconds."""
    start = clock()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and clock() - start > budget:
            return
        yield number


def time_call(call: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Time one call, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _count_gpu_calls(call: Callable[[], object], device: torch.device, clock: Clock) -> int:
    return max(1, min(MAX_GPU_CALLS, int(GPU_SECONDS / time_call(call, device, clock))))


def _repeat(call: Callable[[], object], times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            call()

    return call if times == 1 else run


def _capture(call: Callable[[], object], times: int) -> Callable[[], object]:
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        _repeat(call, times)()
    return graph.replay
