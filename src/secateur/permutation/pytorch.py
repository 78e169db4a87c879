"""Reorder the hidden channels of a torch model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur.config import ConfigLike, make_config
from secateur.errors import CalibrationError, LayerError
from secateur.frameworks.pytorch import unwrap_model
from secateur.frameworks.view import WeightView
from secateur.graph import Group, Member, Role, trace
from secateur.oneshot.pytorch import take_first_batch
from secateur.oneshot.pytorch.calibration.batches import calibration_mode, read_batches
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.patterns.channel_permutation import compute_kept_score, search_permutation
from secateur.patterns.nm import NMPattern
from secateur.patterns.transposable import TransposableNMPattern
from secateur.permutation.report import PermutationReport, PermutedGroup
from secateur.planning.pytorch import plan
from secateur.slimming.pytorch.checks import refuse_model
from secateur.slimming.pytorch.example_run import ExampleRun
from secateur.slimming.pytorch.tensors import list_tensors

__all__ = ["permute_channels"]

MAX_ANNEALED = 1 << 24
"""Maximum product of scores and channels for simulated annealing. Larger searches only climb, which takes seconds."""

TINY = float(np.finfo(np.float32).tiny)
"""Divisor of scores that are all zero."""


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """A layer that reads channels in groups of N:M.

    Attributes:
        name: Its name.
        module: The layer.
        view: Where its channels are.
        pattern: Its pattern.
    """

    name: str
    module: nn.Module
    view: WeightView
    pattern: NMPattern


def permute_channels(model: nn.Module, config: ConfigLike, calibration: Iterable[Any]) -> PermutationReport:
    """See `secateur.permutation.permute_channels`."""
    model = unwrap_model(model)
    refuse_model(model)
    batches, example_inputs = take_first_batch(model, calibration)
    readers = _find_readers(model, config)
    tensors = list_tensors(model)
    graph = trace(model, example_inputs)
    read_by = {id(reader.module.weight): reader for reader in readers}
    groups = [(group, _find_group_readers(group, tensors, read_by)) for group in graph.groups]
    groups = [(group, members) for group, members in groups if members]
    norms = _measure_norms(model, batches, {reader.name: reader for _, members in groups for reader in members})
    example_run = ExampleRun(model, example_inputs)
    permuted, orders = [], []
    for group, members in groups:
        result, order = _search_order(group, members, norms)
        permuted.append(result)
        orders.append((group, order))
    _apply_orders(tensors, orders)
    if not example_run.is_close(example_run.tolerance):
        _apply_orders(tensors, [(group, order.argsort()) for group, order in reversed(orders)])
        raise CalibrationError(
            "The outputs of the model changed when its channels were reordered, so it was restored. Exclude layers "
            "whose code depends on the order of channels."
        )
    return PermutationReport(groups=tuple(permuted))


def _find_readers(model: nn.Module, config: ConfigLike) -> list[_Reader]:
    """Return the layers that will be pruned in groups of N:M, except for grouped convolutions."""
    readers = []
    for pattern in plan(model, make_config(config), prune_frozen=True).patterns:
        if isinstance(pattern, NMPattern) and not isinstance(pattern, TransposableNMPattern):
            for name, view in pattern.views.items():
                module = pattern.modules[name]
                if isinstance(module, nn.Module) and view.groups == 1:
                    readers.append(_Reader(name=name, module=module, view=view, pattern=pattern))
    return readers


def _find_group_readers(
    group: Group, tensors: Mapping[str, torch.Tensor], read_by: Mapping[int, _Reader]
) -> list[_Reader]:
    """Return the layers whose input channels are the units of a group that can be reordered."""
    if group.reason is not None or group.inexact is not None:
        return []
    found = {
        reader.name: reader
        for member in group.members
        if (reader := read_by.get(id(tensors[member.parameter]))) is not None and _reads_all(member, reader)
    }
    specs = {reader.pattern.pattern for reader in found.values()}
    return list(found.values()) if len(specs) == 1 else []


def _reads_all(member: Member, reader: _Reader) -> bool:
    """Whether the input channels of a layer are the units, in order."""
    is_input = member.role is Role.CONSUMER and reader.view.input_axes == (member.axis,)
    indices = member.index_map.indices()
    return is_input and indices.shape[1] == 1 and indices[:, 0].tolist() == list(range(reader.view.canonical_shape[2]))


def _measure_norms(model: nn.Module, batches: Any, readers: Mapping[str, _Reader]) -> dict[str, torch.Tensor]:
    """Return the norms of the inputs of layers, by kernel position and input channel."""
    statistics = InputStatistics({name: reader.module for name, reader in readers.items()}, with_gram=False)
    device = next((weight.device for weight in model.parameters()), None)
    with calibration_mode(model), statistics.record_inputs():
        for batch in read_batches(model, batches):
            statistics.start_batch(batch.keep)
            batch.run(model, device)
    if readers:
        statistics.group_layers()
    return {name: statistics.norms(name).reshape(reader.view.canonical_shape[1:]) for name, reader in readers.items()}


def _search_order(
    group: Group, readers: list[_Reader], norms: Mapping[str, torch.Tensor]
) -> tuple[PermutedGroup, npt.NDArray[np.int64]]:
    """Return the best order of the units of a group, and what N:M keeps before and after."""
    parts = []
    for reader in readers:
        weight: Any = reader.module.weight
        if not weight.isfinite().all():
            raise LayerError(f"layer {reader.name!r}: its weights must be finite, found inf or nan. Check the model.")
        magnitudes = reader.view.to_canonical(weight.detach().float()).abs() * norms[reader.name]
        parts.append(magnitudes.flatten(0, 1).cpu().numpy())
    scores = np.concatenate(parts)
    scores = np.square(scores / max(float(scores.max()), TINY))  # at most 1, as squares could exceed float32
    keep, width = readers[0].pattern.keep, readers[0].pattern.group
    sweeps = 400 if scores.size * scores.shape[1] <= MAX_ANNEALED else 0
    order = search_permutation(scores / max(float(scores.mean()), TINY), keep, width, sweeps=sweeps)
    total = max(float(scores.sum(dtype=np.float64)), TINY)
    before, after = (
        compute_kept_score(scores[:, item], keep, width) / total for item in (np.arange(len(order)), order)
    )
    names = tuple(reader.name for reader in readers)
    return PermutedGroup(name=group.name, units=group.units, layers=names, before=before, after=after), order


def _apply_orders(tensors: Mapping[str, torch.Tensor], orders: Iterable[tuple[Group, npt.NDArray[np.int64]]]) -> None:
    """Reorder all slices of units, in place."""
    with torch.no_grad():
        for group, order in orders:
            for member in group.members:
                tensor, indices = tensors[member.parameter], member.index_map.indices()
                source = torch.arange(tensor.shape[member.axis])
                source[indices.reshape(-1)] = torch.from_numpy(indices[order].reshape(-1))
                tensor.copy_(tensor.index_select(member.axis, source.to(tensor.device)))
