"""Check before anything is cut that no weight reads the units to remove.

All weights that compute or scale these units get noise, and those that read them are zero. If the outputs change,
something reads the units that the graph does not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from secateur._calls.pytorch.example_run import ExampleRun
from secateur.errors import CalibrationError, LayerError
from secateur.graph import Role
from secateur.slimming.pytorch.tensors import AxisIndices, locate_removed
from secateur.slimming.removal import Removal, find_culprits

__all__ = ["probe_removal"]

SEED = 0

MIN_SCALE = 0.1
"""Scale of the noise for tensors of zeros, such as the running means of a new model."""

VARIANCES = ("running_var",)
"""Last parts of the names of tensors that must stay positive."""


def probe_removal(removal: Removal, tensors: Mapping[str, torch.Tensor], example: ExampleRun) -> float:
    """Add noise to the units to remove, and measure how much the outputs change. Afterwards, all bits are the same.

    Raises:
        LayerError: The outputs change; the message names the group.
    """
    change = _measure_change(removal, tensors, example)
    if change <= example.tolerance:
        return change
    culprits = find_culprits(removal, lambda part: _measure_change(part, tensors, example) > example.tolerance)
    raise LayerError(
        f"{culprits.describe_groups()}: units that nothing should read change the outputs by {change:.1e}, with noise "
        f"in the weights that compute them. The graph misses a weight or an operation that reads them. Nothing was "
        f"removed; exclude the group, and report the model."
    )


def _measure_change(removal: Removal, tensors: Mapping[str, torch.Tensor], example: ExampleRun) -> float:
    with _add_noise(removal, tensors):
        try:
            return example.measure_change()
        except CalibrationError:
            return float("inf")


@contextmanager
def _add_noise(removal: Removal, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Write noise into weights that compute removed units and zeros into those that read them, then restore both."""
    names = {id(tensor): name for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(SEED)
    saved: list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]] = []
    writers = locate_removed(removal, tensors, {Role.PRODUCER, Role.PER_CHANNEL})
    readers = locate_removed(removal, tensors, {Role.CONSUMER})
    try:
        with torch.no_grad():
            for tensor, axis, indices in _iterate_slices(writers, tensors):
                slices = tensor.index_select(axis, indices)
                saved.append((tensor, axis, indices, slices))
                is_variance = names[id(tensor)].endswith(VARIANCES)
                tensor.index_copy_(axis, indices, _make_noise(tensor, slices, generator, is_variance=is_variance))
            for tensor, axis, indices in _iterate_slices(readers, tensors):
                saved.append((tensor, axis, indices, tensor.index_select(axis, indices)))
                tensor.index_fill_(axis, indices, 0)
        yield
    finally:
        with torch.no_grad():
            for tensor, axis, indices, slices in reversed(saved):
                tensor.index_copy_(axis, indices, slices)


def _iterate_slices(
    located: Mapping[int, AxisIndices], tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[torch.Tensor, int, torch.Tensor]]:
    by_id = {id(tensor): tensor for tensor in tensors.values()}
    for key, axes in located.items():
        tensor = by_id[key]
        for axis, indices in axes.items() if tensor.is_floating_point() else ():
            yield tensor, axis, torch.from_numpy(np.ascontiguousarray(indices)).to(tensor.device)


def _make_noise(
    tensor: torch.Tensor, slices: torch.Tensor, generator: torch.Generator, *, is_variance: bool
) -> torch.Tensor:
    """Return slices plus noise of the size of the tensor's values."""
    size = float(tensor.detach().float().square().mean().sqrt())
    scale = size if 0 < size < math.inf else MIN_SCALE
    noise = torch.randn(slices.shape, generator=generator).to(tensor.device, torch.float32) * scale
    return (slices.float() + (noise.abs() if is_variance else noise)).to(tensor.dtype)
