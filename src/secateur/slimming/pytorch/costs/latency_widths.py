"""How times depend on the widths of groups, from the times of some copies of a model.

Legend: G groups of a batch, S steps of their widths, the dense model first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import numpy as np

from secateur.graph import Graph
from secateur.slimming.pytorch.costs.latency_batches import BatchLayers, get_layer_kind

__all__ = ["ProfileStep", "WidthTimes", "describe_batch"]


class ProfileStep(NamedTuple):
    """Times of a copy of a model in which the groups of a batch keep fewer units.

    Attributes:
        kept: Group index → kept units.
        dense: Time of the dense model in seconds, measured in turn with the copy.
        saved: Share of that time that the copy saves.
        layers: Name of a layer → its time in the dense model and in the copy, as shares of that time.
    """

    kept: Mapping[int, int]
    dense: float
    saved: float
    layers: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class WidthTimes:
    """How times depend on the number of kept units of a group.

    Attributes:
        kept: Numbers of kept units, ascending.
        ratios: Name of a layer of the group → its time as a share of that in the dense model, for each number.
        rest: The time that the rest of the model saves, as a share of the dense model's time, for each number.
    """

    kept: Sequence[int]
    ratios: Mapping[str, Sequence[float]]
    rest: Sequence[float]

    def get_ratios(self, width: int) -> dict[str, float]:
        """Return the time of each layer as a share of that in the dense model, interpolated."""
        return {name: float(np.interp(width, self.kept, values)) for name, values in self.ratios.items()}

    def get_rest(self, width: int) -> float:
        """Return what the rest of the model saves as a share of the dense model's time, interpolated."""
        return float(np.interp(width, self.kept, self.rest))


def describe_batch(graph: Graph, layers: BatchLayers, steps: Sequence[ProfileStep]) -> dict[int, WidthTimes]:
    """Return how times depend on the widths of the groups of a batch. With fewer units, nothing takes longer.

    Args:
        graph: The dependencies between the parameters.
        layers: The layers of the groups.
        steps: Times of copies with fewer and fewer units.
    """
    pooled = [_pool_ratios(graph, layers, step) for step in steps]
    saved = {
        (number, name): make_ascending([0.0, *(1 - ratios[number, name] for ratios in pooled)])
        for number, own in layers.items()
        for name in own
    }
    dense = {name: mean(step.layers[name][0] for step in steps) for name in steps[0].layers}
    saved_GS = np.array(
        [sum(dense[name] * np.array(saved[number, name]) for name in own) for number, own in layers.items()]
    )
    whole_S = np.array(make_ascending([0.0, *(step.saved for step in steps)]))
    total_S = saved_GS.sum(axis=0)
    shares_GS = np.divide(saved_GS, total_S, out=np.full_like(saved_GS, 1 / len(layers)), where=total_S > 0)
    rest_GS = shares_GS * (whole_S - total_S)
    described = {}
    for (number, own), rest_S in zip(layers.items(), rest_GS.tolist(), strict=True):
        widths = [graph.groups[number].units, *(step.kept[number] for step in steps)]
        points = sorted({width: point for point, width in reversed([*enumerate(widths)])}.items())
        described[number] = WidthTimes(
            kept=[width for width, _ in points],
            ratios={name: [1 - saved[number, name][point] for _, point in points] for name in own},
            rest=[rest_S[point] for _, point in points],
        )
    return described


def make_ascending(values: Sequence[float]) -> list[float]:
    """Return the nearest ascending values that are not negative, by pooling adjacent violators.

    Examples:
        >>> make_ascending([0.0, 3.0, 1.0, 4.0, 6.0])
        [0.0, 2.0, 2.0, 4.0, 6.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((max(value, 0.0), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (first, first_count), (second, second_count) = pools[-2:]
            count = first_count + second_count
            pools[-2:] = [((first * first_count + second * second_count) / count, count)]
    return [value for value, count in pools for _ in range(count)]


def _pool_ratios(graph: Graph, layers: BatchLayers, step: ProfileStep) -> dict[tuple[int, str], float]:
    """Return (group, layer) → its time as a share of that in the dense model, of all layers of the same kind."""
    keys = {
        (number, name): (step.kept[number], get_layer_kind(graph.groups[number], name))
        for number, own in layers.items()
        for name in own
    }
    sums: dict[object, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (_, name), key in keys.items():
        for side, time in enumerate(step.layers[name]):
            sums[key][side] += time
    return {place: sums[key][1] / sums[key][0] if sums[key][0] else 1.0 for place, key in keys.items()}
