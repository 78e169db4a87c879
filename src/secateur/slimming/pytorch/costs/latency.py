"""The time of one call of a model on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from torch import nn

from secateur.graph import Graph
from secateur.runtime.pytorch.timing import Clock
from secateur.slimming.pytorch.costs.base import CostModel, check_widths
from secateur.slimming.pytorch.costs.latency_profile import measure_profile
from secateur.slimming.pytorch.costs.paired_timing import PairedTimer
from secateur.slimming.pytorch.costs.slim_copy import SlimCopy, make_slim_copy

__all__ = ["LatencyCost"]

SECONDS = 2.0
"""Seconds to spend on the measurement of a slimmed model."""


class LatencyCost(CostModel):
    """The time of one call with the example inputs in seconds, in evaluation mode, with torch's number of threads.

    Estimates come from a table that is measured first, on copies of the model at a few widths. A layer that shrinks
    with two groups saves the product of both. `measure` times a slimmed copy in turn with the dense model, and scales
    the ratio by `dense`, so that measurements at different times are comparable.

    Args:
        model: The dense model, without wrappers.
        graph: The dependencies between its parameters.
        example_inputs: Typical inputs of the model.
        lowest: Group index → its smallest width. Other groups keep all units.
        clock: Returns the current time in seconds.

    Raises:
        CalibrationError: The model fails with the example inputs.
        LayerError: Units cannot be removed.
        ConfigError: A group cannot keep so few units.
    """

    quantity = "latency"

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        example_inputs: Any,
        lowest: Mapping[int, int],
        *,
        clock: Clock = perf_counter,
    ) -> None:
        check_widths(graph, lowest)
        self.graph, self._model, self._inputs = graph, model, example_inputs
        self._timer = PairedTimer(model, example_inputs, clock)
        lowest = {number: width for number, width in lowest.items() if width < graph.groups[number].units}
        self._profile = measure_profile(model, graph, lowest, self._timer, self._copy)
        self.dense = self._profile.dense

    def estimate(self, kept: Mapping[int, int]) -> float:
        """See `CostModel.estimate`."""
        check_widths(self.graph, kept)
        left, saved = dict(self._profile.layers), 0.0
        for number, width in kept.items():
            if (times := self._profile.groups.get(number)) is not None:
                saved += times.get_rest(width)
                for name, ratio in times.get_ratios(width).items():
                    left[name] *= ratio
        layers = sum(left[name] - time for name, time in self._profile.layers.items())
        return self.dense * (1 - saved + layers)

    def measure(self, kept: Mapping[int, int]) -> float:
        """See `CostModel.measure`."""
        check_widths(self.graph, kept)
        return self.dense * self._timer.compare(self._copy(kept).model, SECONDS).ratio

    def _copy(self, kept: Mapping[int, int]) -> SlimCopy:
        return make_slim_copy(self._model, self.graph, kept, self._inputs)
