"""Find weights that share memory, because two masks must not prune the same weight."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from secateur._wording import format_list
from secateur.errors import LayerError, StateError

__all__ = ["refuse_aliases", "refuse_shared", "shares_memory"]


def refuse_aliases(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise `LayerError` if two of the weights share memory."""
    names = list(weights)
    for left, right in _find_overlaps(list(weights.values())):
        raise LayerError(
            f"layers {names[left]!r} and {names[right]!r}: their weights are two parameters that share memory, so two "
            f"masks would prune them. Assign one parameter to both layers, or exclude one of them."
        )


def refuse_shared(weights: Mapping[str, torch.Tensor], others: Callable[[], Iterable[torch.Tensor]]) -> None:
    """Raise `StateError` if a weight shares memory with one of `others`, the weights of active runs.

    Runs that are no longer reachable do not count, but garbage collection may not have freed them yet.
    """
    if _find_shared(weights, others()):
        gc.collect()
    if shared := _find_shared(weights, others()):
        raise StateError(
            f"Another pruner already prunes {format_list(map(repr, shared))}. Call its finalize() or close() first."
        )


def _find_shared(weights: Mapping[str, torch.Tensor], others: Iterable[torch.Tensor]) -> list[str]:
    names = list(weights)
    pairs = _find_overlaps([*weights.values(), *others])
    return list(dict.fromkeys(names[left] for left, right in pairs if left < len(names) <= right))


def _find_overlaps(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[int, int]]:
    """Yield the indices of each pair of tensors that have an element in common."""
    first: dict[int, int] = {}
    for index, tensor in enumerate(tensors):
        if first.setdefault(id(tensor), index) != index:
            yield first[id(tensor)], index
    spans = sorted((*_get_address_range(tensors[index]), index) for index in first.values())
    open_spans: list[tuple[int, int, int]] = []
    for start, end, index in spans:
        open_spans = [span for span in open_spans if span[1] > start]
        for other in open_spans:
            if shares_memory(tensors[index], tensors[other[2]]):
                yield min(index, other[2]), max(index, other[2])
        if start:
            open_spans.append((start, end, index))


def shares_memory(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two dense tensors have an element in common.

    Examples:
        >>> matrix = torch.zeros(4, 4)
        >>> shares_memory(matrix, matrix[:, 2:]), shares_memory(matrix[:, :2], matrix[:, 2:])
        (True, False)
    """
    if left is right:
        return True
    (start, end), (others_start, others_end) = _get_address_range(left), _get_address_range(right)
    first, last = max(start, others_start), min(end, others_end)
    if first >= last:
        return False
    if start == others_start or left.element_size() != right.element_size():
        return True
    return _have_common_elements(left, right, start, others_start)


def _have_common_elements(left: torch.Tensor, right: torch.Tensor, start: int, others_start: int) -> bool:
    """Whether two tensors with equal element size and overlapping address ranges have an element in common."""
    size, base = left.element_size(), min(start, others_start)
    end = max(_get_address_range(left)[1], _get_address_range(right)[1])
    touched = torch.zeros((end - base) // size, dtype=torch.bool)
    touched.as_strided(left.shape, left.stride(), (start - base) // size).fill_(value=True)
    return bool(touched.as_strided(right.shape, right.stride(), (others_start - base) // size).any())


def _get_address_range(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the address of the first byte of a tensor and the end of its last byte; both 0 if it has no memory."""
    if type(tensor.data) is not torch.Tensor or tensor.layout != torch.strided or not tensor.numel():
        return 0, 0
    start = 0 if tensor.is_meta else tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (start, start + (last + 1) * tensor.element_size()) if start else (0, 0)
