"""What a model returns, and how far it is from what it returned before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

__all__ = ["Snapshot", "largest_difference", "take_snapshot"]

Snapshot: TypeAlias = dict[str, Any]
"""Where a value is in what a model returned → a copy of the tensor, or the value itself if it is a number or text."""

MAX_DEPTH = 20

OPAQUE = (FunctionType, MethodType, ModuleType, type, nn.Module)
"""What holds no outputs."""


def take_snapshot(outputs: Any) -> Snapshot:
    """Copy all tensors and numbers in tuples, mappings, dataclasses and other objects."""
    return {path: _copied(value) for path, value in _leaves(outputs, "", set())}


def largest_difference(expected: Snapshot, found: Snapshot) -> float:
    """The largest difference of any output from the expected one, over the largest value of this.

    Of integers and booleans, it is the share of values that differ. It is infinite where outputs are missing, of
    another shape or type, infinite or ``nan`` elsewhere, or other numbers or texts.
    """
    if expected.keys() != found.keys():
        return math.inf
    return max((_difference(value, found[path]) for path, value in expected.items()), default=0.0)


def _leaves(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic, bool, int, float, complex, str)):
        yield path, value
        return
    if isinstance(value, OPAQUE) or id(value) in seen or len(seen) > MAX_DEPTH:
        return
    inner = seen | {id(value)}
    if isinstance(value, Mapping):
        parts = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, (tuple, list)):
        parts = [(str(number), one) for number, one in enumerate(value)]
    elif is_dataclass(value):
        parts = [(one.name, getattr(value, one.name)) for one in fields(value)]
    else:
        parts = list(getattr(value, "__dict__", {}).items())
    for name, part in parts:
        yield from _leaves(part, f"{path}.{name}", inner)


def _copied(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = torch.as_tensor(np.array(value))
    if not isinstance(value, torch.Tensor):
        return value
    dense = value.detach()
    if dense.is_nested:
        dense = torch.cat([one.flatten() for one in dense.unbind()])
    elif dense.is_quantized:
        dense = dense.dequantize()
    elif dense.is_mkldnn or dense.layout is not torch.strided:
        dense = dense.to_dense()
    dense = dense.resolve_conj().resolve_neg()
    return torch.view_as_real(dense).clone() if dense.is_complex() else dense.clone()


def _difference(expected: Any, found: Any) -> float:
    if not isinstance(expected, torch.Tensor):
        same = expected == found or (expected != expected and found != found)  # not a number
        return 0.0 if type(expected) is type(found) and same else _of_numbers(expected, found)
    if not isinstance(found, torch.Tensor) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return math.inf
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return float((expected != found).float().mean())
    before, after = expected.float(), found.float()
    if expected.dtype is torch.float64:
        before, after = expected, found
    is_finite = before.isfinite()
    if not torch.equal(before[~is_finite].nan_to_num(), after[~is_finite].nan_to_num()):
        return math.inf
    if not torch.equal(is_finite, after.isfinite()):
        return math.inf
    return _ratio((before - after)[is_finite].abs(), before[is_finite].abs())


def _of_numbers(expected: Any, found: Any) -> float:
    if not (isinstance(expected, float) and isinstance(found, float)):
        return math.inf
    difference = abs(expected - found) / max(abs(expected), torch.finfo(torch.float32).tiny)
    return math.inf if math.isnan(difference) else difference


def _ratio(differences: torch.Tensor, sizes: torch.Tensor) -> float:
    if not differences.numel():
        return 0.0
    return float(differences.max().double() / sizes.max().double().clamp(min=torch.finfo(torch.float32).tiny))
