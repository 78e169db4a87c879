"""Floating-point operations of one call of a model with its example inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from secateur._calls.pytorch.example_run import ExampleRun
from secateur.graph import Graph
from secateur.slimming.pytorch.costs.base import CostModel, check_widths
from secateur.slimming.pytorch.costs.slim_copy import make_slim_copy
from secateur.slimming.pytorch.costs.weight_shapes import TensorShape, read_shapes

__all__ = ["FlopCost", "count_flops", "count_nonzero_flops"]


def _count_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention}
"""Formulas for operations that torch's counter omits on the CPU, although it counts them on other devices."""


def count_flops(model: nn.Module, example_inputs: Any) -> int:
    """Count the operations of matrix products, convolutions and attention of one call in evaluation mode.

    A multiplication and an addition count as two. Everything else counts as zero, as in torch's `FlopCounterMode`.

    Args:
        model: The model.
        example_inputs: Typical inputs of the model.

    Raises:
        CalibrationError: The model fails with the example inputs.

    Examples:
        >>> count_flops(nn.Linear(4, 8), torch.ones(3, 4))
        192
    """
    return _count_by_module(model, example_inputs)[""]


def count_nonzero_flops(model: nn.Module, example_inputs: Any) -> float:
    """Count the operations of one call like `count_flops`, without those of weights that are zero.

    Args:
        model: The model.
        example_inputs: Typical inputs of the model.

    Raises:
        CalibrationError: The model fails with the example inputs.

    Examples:
        >>> layer = nn.Linear(4, 8)
        >>> with torch.no_grad():
        ...     layer.weight[:, 1:] = 0
        >>> count_nonzero_flops(layer, torch.ones(3, 4))
        48.0
    """
    own = _exclude_children(_count_by_module(model, example_inputs))
    total = 0.0
    for name, flops in own.items():
        weights = [weight for weight in model.get_submodule(name)._parameters.values() if _is_matrix(weight)]
        numbers = sum(weight.numel() for weight in weights if weight is not None)
        nonzero = sum(int(torch.count_nonzero(weight)) for weight in weights if weight is not None)
        total += flops * nonzero / numbers if numbers else flops
    return total


class _ModuleFlops(NamedTuple):
    """The operations of a module, excluding those of the modules inside it.

    Attributes:
        flops: Number of operations in the dense model.
        weights: Its weights; the number is proportional to their size.
        heads: For a module without weights, group index → number of heads; the number is proportional to the kept
            heads.
    """

    flops: int
    weights: Sequence[TensorShape]
    heads: Mapping[int, int]

    def estimate(self, kept: Mapping[int, int]) -> float:
        if self.weights:
            return self.flops * sum(w.count(kept) for w in self.weights) / sum(w.count({}) for w in self.weights)
        if not self.heads:
            return self.flops
        return self.flops * mean(kept.get(number, units) / units for number, units in self.heads.items())


class FlopCost(CostModel):
    """The operations of one call of the model.

    Estimates are proportional to the sizes of weights, and attention to the numbers of heads. `measure` counts in a
    slimmed copy of the model.

    Args:
        model: The dense model, without wrappers.
        graph: The dependencies between its parameters.
        example_inputs: Typical inputs of the model.

    Raises:
        CalibrationError: The model fails with the example inputs.
        LayerError: The graph belongs to another model.
    """

    quantity = "flops"

    def __init__(self, model: nn.Module, graph: Graph, example_inputs: Any) -> None:
        self.graph, self._model, self._inputs = graph, model, example_inputs
        counts = _count_by_module(model, example_inputs)
        self.dense = float(counts[""])
        self._modules = tuple(_describe_modules(model, graph, counts))

    def estimate(self, kept: Mapping[int, int]) -> float:
        """See `CostModel.estimate`."""
        check_widths(self.graph, kept)
        return float(round(sum(module.estimate(kept) for module in self._modules)))

    def measure(self, kept: Mapping[int, int]) -> float:
        """See `CostModel.measure`."""
        check_widths(self.graph, kept)
        slimmed = make_slim_copy(self._model, self.graph, kept, self._inputs)
        return float(count_flops(slimmed.model, self._inputs))


def _count_by_module(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Return module name → its operations, including those of the modules inside it."""
    example = ExampleRun(model, example_inputs)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with _freeze(model), counter:
        example.run()
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name != "Global"}
    return {name.partition(".")[2]: count for name, count in by_module.items()} | {"": counter.get_total_flops()}


@contextmanager
def _freeze(model: nn.Module) -> Iterator[None]:
    """Freeze all parameters, because the counter expects gradients of those that are passed to modules."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _describe_modules(model: nn.Module, graph: Graph, counts: Mapping[str, int]) -> Iterator[_ModuleFlops]:
    shapes = read_shapes(model, graph)
    own = _exclude_children(counts)
    weights = {
        name: [shapes[id(weight)] for weight in model.get_submodule(name)._parameters.values() if _is_matrix(weight)]
        for name in counts
    }
    heads = _assign_heads(graph, [name for name in counts if own[name] and not weights[name]])
    for name, flops in own.items():
        if flops:
            yield _ModuleFlops(flops, weights[name], heads.get(name, {}))


def _is_matrix(weight: torch.Tensor | None) -> bool:
    return weight is not None and weight.dim() > 1


def _exclude_children(counts: Mapping[str, int]) -> dict[str, int]:
    """Return module name → its operations, excluding those of the modules inside it."""
    return {
        name: total - sum(counts[child] for child in _list_children(name, counts)) for name, total in counts.items()
    }


def _list_children(name: str, names: Collection[str]) -> list[str]:
    """List those names that are inside a module, but not inside another of them."""
    inside = [other for other in names if other and other != name and _contains(name, other)]
    return [other for other in inside if not any(_contains(parent, other) for parent in inside if parent != other)]


def _assign_heads(graph: Graph, names: Collection[str]) -> dict[str, dict[int, int]]:
    """Assign groups of heads to the innermost module with several of their weights."""
    assigned: dict[str, dict[int, int]] = {}
    for number, group in enumerate(graph.groups):
        parameters = [member.parameter for member in group.members]
        homes = [name for name in names if sum(_contains(name, parameter) for parameter in parameters) > 1]
        if group.kind == "heads" and homes:
            assigned.setdefault(max(homes, key=len), {})[number] = group.units
    return assigned


def _contains(module: str, name: str) -> bool:
    return not module or name.startswith(f"{module}.")
