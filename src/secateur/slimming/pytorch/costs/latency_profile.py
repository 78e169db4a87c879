"""Measure how the times of layers and of the whole model depend on the widths of groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from statistics import median

from torch import nn

from secateur.graph import Graph
from secateur.runtime.pytorch.interleaved_timing import ModuleTimer
from secateur.slimming.pytorch.costs.latency_batches import find_layers, form_batches
from secateur.slimming.pytorch.costs.latency_widths import ProfileStep, WidthTimes, describe_batch
from secateur.slimming.pytorch.costs.paired_timing import PairedTimer
from secateur.slimming.pytorch.costs.slim_copy import SlimCopy

__all__ = ["LatencyProfile", "measure_profile"]

MIN_SHARE = 1e-6
"""A share that is rounded up to the smallest nonzero number of units."""

SlimCopier = Callable[[Mapping[int, int]], SlimCopy]

MIN_STEPS, MAX_STEPS = 3, 8
"""Number of widths of each group to time."""

SECONDS, COPY_SECONDS = 30.0, 0.5
"""Seconds to spend on all optional widths, and on timing one of them."""


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Measured times of a model.

    Attributes:
        dense: Time of a call in seconds.
        layers: Name of a layer → its time as a share of that, for layers of groups.
        groups: Group index → how times depend on its width.
    """

    dense: float
    layers: Mapping[str, float]
    groups: Mapping[int, WidthTimes]


def measure_profile(
    model: nn.Module, graph: Graph, lowest: Mapping[int, int], timer: PairedTimer, copier: SlimCopier
) -> LatencyProfile:
    """Time copies of a model with smaller widths.

    Groups that share no layer are slimmed in the same copy, so that few copies are needed. The times of their layers
    tell them apart. The whole model saves more, or less, because it also has operations between layers, such as
    activations and attention; the difference is shared in proportion.

    Args:
        model: The dense model.
        graph: The dependencies between its parameters.
        lowest: Group index → its smallest width, less than its units.
        timer: Times the model against its copies.
        copier: Returns a copy of the model for the kept units of some groups. One copy is in memory at a time.
    """
    return _Profiler(model, graph, lowest, timer, copier).run()


class _Profiler:
    """The arguments of `measure_profile`, and the layers of each group."""

    def __init__(
        self, model: nn.Module, graph: Graph, lowest: Mapping[int, int], timer: PairedTimer, copier: SlimCopier
    ) -> None:
        self._model, self._graph, self._lowest = model, graph, lowest
        self._timer, self._copier = timer, copier
        self._layers = find_layers(model, graph, lowest)

    def run(self) -> LatencyProfile:
        batches = form_batches(self._graph, self._layers)
        if not batches:
            return LatencyProfile(self._timer.compare(self._model, COPY_SECONDS).dense, {}, {})
        start = self._timer.clock()
        pilot = self._measure(batches[0], 0.0)
        count = int(SECONDS / len(batches) / max(self._timer.clock() - start, 1e-9))
        count = min(max(count, MIN_STEPS), MAX_STEPS)
        steps = {
            batch[0]: [self._measure(batch, share) for share in self._list_shares(batch, count)] for batch in batches
        }
        for batch in batches:
            steps[batch[0]].append(pilot if batch is batches[0] else self._measure(batch, 0.0))
        shares: dict[str, list[float]] = defaultdict(list)
        for step in chain.from_iterable(steps.values()):
            for name, (dense, _) in step.layers.items():
                shares[name].append(dense)
        described = (
            describe_batch(self._graph, {number: self._layers[number] for number in batch}, steps[batch[0]])
            for batch in batches
        )
        return LatencyProfile(
            dense=median(step.dense for step in chain.from_iterable(steps.values())),
            layers={name: median(values) for name, values in shares.items()},
            groups={number: widths for batch in described for number, widths in batch.items()},
        )

    def _list_shares(self, batch: Sequence[int], count: int) -> list[float]:
        """List the shares to measure besides 0, and the smallest nonzero width if whole branches can be removed."""
        shares = [1 - step / count for step in range(1, count)]
        return shares + [MIN_SHARE] * any(self._lowest[number] == 0 for number in batch)

    def _measure(self, batch: Sequence[int], share: float) -> ProfileStep:
        """Time a copy in which groups keep a share of the units that can be removed."""
        kept = {number: self._round(number, share) for number in batch}
        slimmed = self._copier(kept)
        names = sorted({name for number in batch for name in self._layers[number]})
        timers = {name: (ModuleTimer(self._timer.clock), ModuleTimer(self._timer.clock)) for name in names}

        def end_round() -> None:
            for timer in chain.from_iterable(timers.values()):
                timer.end_lap()

        with ExitStack() as stack:
            for name, (dense, slim) in timers.items():
                stack.enter_context(dense.attach(self._model.get_submodule(name)))
                if name in slimmed.modules:
                    stack.enter_context(slim.attach(slimmed.modules[name]))
            times = self._timer.compare(slimmed.model, COPY_SECONDS, end_round)
        layers = {
            name: (_get_time(dense) / times.dense, _get_time(slim) / times.dense)
            for name, (dense, slim) in timers.items()
        }
        return ProfileStep(kept, times.dense, 1 - times.ratio, layers)

    def _round(self, number: int, share: float) -> int:
        group, lowest = self._graph.groups[number], self._lowest[number]
        return max(lowest, group.count_kept(round((1 - share) * (group.units - lowest)))) if share else lowest


def _get_time(timer: ModuleTimer) -> float:
    """Return the median time without the first round, which warms up; 0 if the module was not called."""
    return median(timer.laps[1:] or [0.0])
