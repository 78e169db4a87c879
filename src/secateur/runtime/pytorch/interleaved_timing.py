"""Time layers inside calls of their model, alternating between dense layers and their replacements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from statistics import mean, median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from secateur.runtime.pytorch.replacement import replace_modules_temporarily
from secateur.runtime.pytorch.timing import Clock, count_rounds, time_call

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

__all__ = ["TimePair", "time_layers", "time_model"]

BUDGET = 2.0
"""Seconds to spend on the layers, and again on the model. The minimum number of rounds may take longer."""


class TimePair(NamedTuple):
    """Median times of a call in seconds.

    Attributes:
        dense: Time with the dense layers.
        sparse: Time with their replacements.
    """

    dense: float
    sparse: float


class ModuleTimer:
    """Times the calls of a module.

    Args:
        clock: Returns the current time in seconds.

    Attributes:
        laps: Mean time of the calls in each lap, in seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self.laps: list[float] = []
        self._clock, self._start, self._times = clock, 0.0, list[float]()

    @contextmanager
    def attach(self, module: nn.Module) -> Iterator[None]:
        """Time the calls of a module inside a ``with`` block."""
        hooks = module.register_forward_pre_hook(self._start_call), module.register_forward_hook(self._end_call)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def end_lap(self) -> None:
        """Record the mean time of the calls since the previous lap, if there were any."""
        if self._times:
            self.laps.append(mean(self._times))
            self._times.clear()

    def _start_call(self, *_: Any) -> None:
        self._start = self._clock()

    def _end_call(self, *_: Any) -> None:
        self._times.append(self._clock() - self._start)


def time_layers(
    model: nn.Module,
    call: Callable[[], object],
    replacements: Mapping[str, nn.Module],
    *,
    clock: Clock = perf_counter,
) -> dict[str, TimePair]:
    """Time layers and their replacements inside calls of the whole model.

    These times may differ from those of an isolated layer: in a model, other layers have evicted its data from the
    caches, and torch's threads are still awake from the previous layer.

    Args:
        model: A model on the CPU. It is left unchanged.
        call: Calls the model.
        replacements: Maps the name of a layer to its replacement. All layers are replaced at the same time.
        clock: Returns the current time in seconds.

    Returns:
        Maps the name of a layer to its times, for layers that were called both dense and replaced.
    """
    timers = {name: (ModuleTimer(clock), ModuleTimer(clock)) for name in replacements}

    def run_lap(_: int) -> None:
        call()
        for pair in timers.values():
            for timer in pair:
                timer.end_lap()

    with ExitStack() as stack:
        for name, (dense, sparse) in timers.items():
            stack.enter_context(dense.attach(model.get_submodule(name)))
            stack.enter_context(sparse.attach(replacements[name]))
        _alternate(model, replacements, run_lap, clock)
    return {
        name: TimePair(median(dense.laps), median(sparse.laps))
        for name, (dense, sparse) in timers.items()
        if dense.laps and sparse.laps
    }


def time_model(
    model: nn.Module,
    call: Callable[[], object],
    replacements: Mapping[str, nn.Module],
    device: torch.device,
    *,
    budget: float = BUDGET,
    clock: Clock = perf_counter,
) -> TimePair:
    """Time calls of the whole model, dense and with all replacements. The model is left unchanged."""
    times: tuple[list[float], list[float]] = [], []
    _alternate(model, replacements, lambda side: times[side].append(time_call(call, device, clock)), clock, budget)
    return TimePair(*map(median, times))


def _alternate(
    model: nn.Module,
    replacements: Mapping[str, nn.Module],
    run: Callable[[int], None],
    clock: Clock,
    budget: float = BUDGET,
) -> None:
    """Alternate between ``run(0)`` with the dense model and ``run(1)`` with the replacements, for several rounds."""
    for _ in count_rounds(budget, clock):
        run(0)
        with replace_modules_temporarily(model, replacements):
            run(1)
