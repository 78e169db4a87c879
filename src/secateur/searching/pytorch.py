"""Copy torch models, and measure what they cost."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur._calls.pytorch.example_inputs import fix_seed as fix_seed_of_device
from secateur.artifact import inspect
from secateur.errors import CalibrationError, UnsupportedModelError
from secateur.oneshot.pytorch import take_first_batch
from secateur.runtime import compile as compile_model
from secateur.slimming.pytorch.costs.flops import count_nonzero_flops
from secateur.slimming.pytorch.costs.paired_timing import PairedTimer

__all__ = [
    "CostMeter",
    "compute_sparsity",
    "copy_model",
    "digest_model",
    "fix_seed",
    "take_example_inputs",
]

SECONDS = 1.0
"""Seconds to spend on the comparison of a pruned model with the dense one."""


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model with its weights.

    Raises:
        UnsupportedModelError: It cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedModelError(
            f"A search prunes copies of the model, and {type(model).__name__} cannot be copied: "
            f"{type(error).__name__}: {error}"
        ) from error


def digest_model(model: nn.Module) -> str:
    """Return a digest of the names, types, shapes and values of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def fix_seed(model: nn.Module) -> Iterator[None]:
    """Seed the random number generators inside a ``with`` block, so that equal candidates have equal results."""
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    with fix_seed_of_device(device):
        yield


def take_example_inputs(model: nn.Module, calibration: Any) -> Any:
    """Return the arguments of the model in the first batch of the calibration data."""
    return take_first_batch(model, calibration)[1]


def compute_sparsity(model: nn.Module, dense: nn.Module) -> float:
    """Return the share of the weights of the dense model that are zero or removed in another one."""
    return 1 - count_nonzero(model) / max(1, sum(weight.numel() for weight in dense.parameters()))


def count_nonzero(model: nn.Module) -> int:
    """Count the weights that are not zero."""
    return sum(int(torch.count_nonzero(weight)) for weight in model.parameters())


class CostMeter:
    """Measures the cost of pruned copies of a model.

    Args:
        cost: A key of `secateur.searching.COSTS`, or a function that returns the cost of a model.
        model: The dense model.
        example_inputs: Typical inputs of the model, for FLOPs and latency.

    Attributes:
        dense: The cost of the dense model.

    Raises:
        CalibrationError: Example inputs are needed and missing, or the model fails with them.
    """

    def __init__(self, cost: str | Callable[[Any], float], model: nn.Module, example_inputs: Any) -> None:
        self._inputs = example_inputs
        if cost in ("flops", "latency") and example_inputs is None:
            raise CalibrationError(f"cost={cost!r} needs example_inputs or calibration data, found neither.")
        if cost == "latency":
            self._timer = PairedTimer(model, example_inputs)
            self.dense = self._timer.compare(model, SECONDS).dense
            self._measure: Callable[[Any], float] = self._measure_latency
            return
        measures: Mapping[Any, Callable[[Any], float]] = {
            "parameters": count_nonzero,
            "bytes": lambda other: inspect(other).packed_bytes,
            "flops": lambda other: count_nonzero_flops(other, example_inputs),
        }
        self._measure = measures[cost] if isinstance(cost, str) else cost
        self.dense = self.measure(copy_model(model))

    def measure(self, model: nn.Module) -> float:
        """Return the cost of a pruned model, which stays as it is."""
        return float(self._measure(model))

    def _measure_latency(self, model: nn.Module) -> float:
        """Time a compiled copy in turn with the dense model, so that other programs slow down both equally."""
        compiled = copy_model(model).eval()
        compile_model(compiled, self._inputs)
        return self.dense * self._timer.compare(compiled, SECONDS).ratio
