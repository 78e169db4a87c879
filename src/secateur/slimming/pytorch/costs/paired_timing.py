"""Time a slimmed copy of a model against the dense model, in turn."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn

from secateur._calls.pytorch.example_run import evaluate_model, prepare_inputs, restore_buffers
from secateur.runtime.pytorch.timing import Clock, time_call

__all__ = ["PairedTimer", "PairedTimes"]

MIN_ROUNDS, MAX_ROUNDS = 3, 200
"""Limits for the number of rounds of a comparison."""


class PairedTimes(NamedTuple):
    """Times of calls of both models.

    Attributes:
        dense: Median time of a call of the dense model in seconds.
        ratio: Median over all rounds of the time of the slimmed model as a share of that of the dense model.
    """

    dense: float
    ratio: float


class PairedTimer:
    """Times models on the same inputs in evaluation mode, without gradients, and with the current number of threads.

    Args:
        model: The dense model.
        example_inputs: Typical inputs of the model.
        clock: Returns the current time in seconds.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, clock: Clock = perf_counter) -> None:
        self._model, self._inputs, self.clock = model, prepare_inputs(model, example_inputs), clock
        self._device = next((weight.device for weight in model.parameters()), torch.device("cpu"))

    def compare(self, slimmed: nn.Module, seconds: float, end_round: Callable[[], None] = lambda: None) -> PairedTimes:
        """Call both models in turn, so that other programs slow down both equally.

        Args:
            slimmed: The slimmed model.
            seconds: Seconds to spend; a minimum number of rounds may take longer.
            end_round: Called after each round, the first of which warms up and does not count.

        Raises:
            CalibrationError: A model fails with the example inputs.
        """
        models, order = (self._model, slimmed), [0, 1]
        pairs: list[tuple[float, float]] = []
        with torch.no_grad(), evaluate_model(self._model), evaluate_model(slimmed), restore_buffers(self._model):
            start = self.clock()
            while len(pairs) <= MIN_ROUNDS or (self.clock() - start < seconds and len(pairs) <= MAX_ROUNDS):
                times = {side: self._time(models[side]) for side in order}
                pairs.append((times[0], times[1]))
                order.reverse()
                end_round()
        counted = pairs[1:]
        return PairedTimes(median(dense for dense, _ in counted), median(slim / dense for dense, slim in counted))

    def _time(self, model: nn.Module) -> float:
        inputs = self._inputs.copy()
        return time_call(lambda: inputs.call(model), self._device, self.clock)
