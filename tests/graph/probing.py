"""Prove that groups are right: change units that nothing reads, and see that the output stays the same."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from secateur.graph import Graph, Group, Role
from secateur.graph.pytorch.tracing import split_inputs

__all__ = ["describe", "fill", "get_tensors", "probe", "probe_all", "prunable", "run"]


def prunable(graph: Graph, kind: str | None = None, *, inexact: bool = False) -> list[Group]:
    return [
        group
        for group in graph.groups
        if group.obstacle is None and (group.inexact is not None) == inexact and kind in (None, group.kind)
    ]


def describe(graph: Graph) -> list[Any]:
    """Everything about the groups that can be pruned, independent of their order."""
    return sorted(
        (group.units, group.kind, str(group.inexact is None), member.parameter, member.axis, member.role.value, indices)
        for group in graph.groups
        if group.obstacle is None
        for member in group.members
        for indices in [str(member.index_map.indices().tolist())]
    )


def flatten(outputs: Any) -> torch.Tensor:
    tensors = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def run(model: nn.Module, inputs: Any) -> torch.Tensor:
    args, kwargs = split_inputs(model, inputs)
    with torch.no_grad():
        return flatten(model(*args, **kwargs))


def get_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def fill(model: nn.Module, group: Group, pruned: Sequence[int], *, zeros: bool) -> None:
    """Set the consumers of some units to zero, or all their other slices to noise."""
    tensors = get_tensors(model)
    with torch.no_grad():
        for member in group.members:
            if (member.role is Role.CONSUMER) is zeros:
                indices = torch.as_tensor(member.index_map.indices()[pruned].reshape(-1))
                slices = tensors[member.parameter].index_select(member.axis, indices)
                values = torch.zeros_like(slices) if zeros else torch.rand_like(slices) + 0.5
                tensors[member.parameter].index_copy_(member.axis, indices, values)


def probe(create: Callable[[], nn.Module], inputs: Any, group: Group) -> float:
    """Return how far the output changes if half of the units change, but nothing reads them."""
    model = create()
    pruned = list(range(0, group.units, 2))
    fill(model, group, pruned, zeros=True)
    masked = run(model, inputs)
    fill(model, group, pruned, zeros=False)
    fill(model, group, pruned, zeros=True)  # noise in rows must not bring back zeros in columns
    return float((run(model, inputs) - masked).abs().max() / masked.abs().max().clamp_min(1))


def probe_all(create: Callable[[], nn.Module], inputs: Any, graph: Graph) -> float:
    """Return the greatest change that `probe` finds for the groups that can be removed exactly."""
    return max((probe(create, inputs, group) for group in prunable(graph)), default=0.0)
