"""Time calls robustly on a machine that also runs other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter
from typing import TypeAlias

import torch

__all__ = ["Clock", "count_rounds", "measure_load", "measure_medians", "time_call"]

Clock: TypeAlias = Callable[[], float]
"""A function that returns the current time in seconds, such as `time.perf_counter`."""

BUDGET = 0.15
"""Seconds to spend on a comparison. The minimum number of rounds may take longer."""

MIN_ROUNDS, MAX_ROUNDS = 5, 200
"""Limits for the number of rounds of a comparison."""

GPU_SECONDS, MAX_GPU_CALLS = 2e-3, 50
"""Seconds and number of calls between synchronizations with a GPU, which runs one call while the next is launched."""


def measure_load() -> float:
    """Return the load average of the last minute per processor, or 0 where the system has none, as on Windows."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def measure_medians(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    budget: float = BUDGET,
    *,
    cuda_graph: bool = False,
    clock: Clock = perf_counter,
) -> list[float]:
    """Measure the median time of each function in seconds.

    Functions are called in turn, so that other programs slow down all of them equally.

    Args:
        calls: The functions to time.
        device: The device that they run on. On a GPU, many calls are launched back to back, as in a model, so the
            result is the time to launch a call or to run it, whichever is longer.
        budget: Seconds to spend.
        cuda_graph: Whether to capture the calls in a CUDA graph, which measures only the time on the GPU. The functions
            must not synchronize with the GPU: after a failed capture, torch can no longer generate random numbers.
        clock: Returns the current time in seconds.
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
    """Yield the numbers of rounds, from 0, until the budget in seconds is spent."""
    start = clock()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and clock() - start > budget:
            return
        yield number


def time_call(call: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Measure the time of one call in seconds."""
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
