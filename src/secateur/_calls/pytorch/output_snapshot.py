"""Copy the outputs of a model, and compare them with the outputs of another call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

__all__ = ["OutputSnapshot", "find_tensors", "measure_difference", "take_snapshot"]

OutputSnapshot: TypeAlias = dict[str, Any]
"""Maps the path of a value in the outputs to a copy of the tensor, or to the number or string."""

MAX_DEPTH = 20

OPAQUE_TYPES = (FunctionType, MethodType, ModuleType, type, nn.Module)
"""Types whose attributes are not outputs."""


def find_tensors(outputs: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in tuples, lists, mappings, dataclasses and other objects."""
    return (value for _, value in _find_leaves(outputs, "", set()) if isinstance(value, torch.Tensor))


def take_snapshot(outputs: Any) -> OutputSnapshot:
    """Copy all tensors, numbers and strings in tuples, lists, mappings, dataclasses and other objects."""
    return {path: _copy(value) for path, value in _find_leaves(outputs, "", set())}


def measure_difference(
    expected: OutputSnapshot, actual: OutputSnapshot, *, min_size: float = torch.finfo(torch.float32).tiny
) -> float:
    """Return the largest difference between outputs, relative to the largest expected value of each tensor.

    If the largest value is smaller than `min_size`, the difference is relative to `min_size`.

    For integers and booleans, the difference is the share of values that differ. The difference is infinite if outputs
    are missing, if their shape or type differs, if infinite or ``nan`` values are in different places, or if other
    values, such as strings, are not equal.
    """
    if expected.keys() != actual.keys():
        return math.inf
    return max((_compare(value, actual[path], min_size) for path, value in expected.items()), default=0.0)


def _find_leaves(value: Any, path: str, visited: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic, bool, int, float, complex, str)):
        yield path, value
        return
    if isinstance(value, OPAQUE_TYPES) or id(value) in visited or len(visited) > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, (tuple, list)):
        items = [(str(number), item) for number, item in enumerate(value)]
    elif is_dataclass(value):
        items = [(field.name, getattr(value, field.name)) for field in fields(value)]
    else:
        items = list(getattr(value, "__dict__", {}).items())
    for name, item in items:
        yield from _find_leaves(item, f"{path}.{name}", visited | {id(value)})


def _copy(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = torch.as_tensor(np.array(value))
    if not isinstance(value, torch.Tensor):
        return value
    dense = value.detach()
    if dense.is_nested:
        dense = torch.cat([tensor.flatten() for tensor in dense.unbind()])
    elif dense.is_quantized:
        dense = dense.dequantize()
    elif dense.is_mkldnn or dense.layout is not torch.strided:
        dense = dense.to_dense()
    dense = dense.resolve_conj().resolve_neg()
    return torch.view_as_real(dense).clone() if dense.is_complex() else dense.clone()


def _compare(expected: Any, actual: Any, min_size: float) -> float:
    if not isinstance(expected, torch.Tensor):
        is_equal = expected == actual or (expected != expected and actual != actual)  # both are nan
        return 0.0 if type(expected) is type(actual) and is_equal else _compare_numbers(expected, actual, min_size)
    if not isinstance(actual, torch.Tensor) or (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        return math.inf
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return float((expected != actual).float().mean())
    before, after = expected.float(), actual.float()
    if expected.dtype is torch.float64:
        before, after = expected, actual
    is_finite = before.isfinite()
    if not torch.equal(is_finite, after.isfinite()):
        return math.inf
    if not bool(is_finite.all()):  # selecting values takes long
        if not torch.equal(before[~is_finite].nan_to_num(), after[~is_finite].nan_to_num()):
            return math.inf
        before, after = before[is_finite], after[is_finite]
    return _divide_maxima((before - after).abs_(), before.abs(), min_size)


def _compare_numbers(expected: Any, actual: Any, min_size: float) -> float:
    if not (isinstance(expected, float) and isinstance(actual, float)):
        return math.inf
    difference = abs(expected - actual) / max(abs(expected), min_size)
    return math.inf if math.isnan(difference) else difference


def _divide_maxima(differences: torch.Tensor, sizes: torch.Tensor, min_size: float) -> float:
    if not differences.numel():
        return 0.0
    return float(differences.max().double() / sizes.max().double().clamp(min=min_size))
