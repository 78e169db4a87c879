"""Regroup calibration batches by sequence, so that refiners do not depend on how the data was cut into batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.calibration.batches import Batch, iterate_tensors

__all__ = ["regroup_by_sequences"]

MIN_POSITIONS = 512
"""Positions of a group of rows that are shorter, such as short sequences, small images or single vectors."""

TOLERANCE = 1e-3
"""Difference between outputs, relative to the largest, that rounding can explain."""


def regroup_by_sequences(model: nn.Module, batches: Sequence[Batch], device: torch.device) -> list[Batch]:
    """Return batches of one sequence each, or of as many short rows as have `MIN_POSITIONS` positions.

    The batches are returned as they are if the model does not treat their rows independently.

    Args:
        model: The model, in evaluation mode.
        batches: The batches.
        device: The device on which the model runs.
    """
    if any(batch.count_rows() is None for batch in batches):
        return list(batches)
    if all(batch.count_rows() == 1 and _count_rows_per_group(batch) == 1 for batch in batches):
        return list(batches)
    joined = [batch for group in _group_equal(batches) for batch in _join(group)]
    if not _has_independent_rows(model, max(joined, key=lambda batch: batch.count_rows() or 0), device):
        return list(batches)
    groups = [
        batch.select_rows(slice(start, start + _count_rows_per_group(batch)))
        for batch in joined
        for start in range(0, batch.count_rows() or 0, _count_rows_per_group(batch))
    ]
    with_content = [group for group in groups if group.keep is None or bool(group.keep.any())]
    return [replace(group, number=number) for number, group in enumerate(with_content)]


def _get_main_tensor(batch: Batch) -> torch.Tensor:
    main = batch.named.get("input_ids")
    return main if isinstance(main, torch.Tensor) else batch.tensors[0]


def _count_rows_per_group(batch: Batch) -> int:
    inputs = _get_main_tensor(batch)
    is_sequence = not inputs.is_floating_point() or inputs.ndim == 3
    positions = math.prod(inputs.shape[1:2] if is_sequence else inputs.shape[2:])
    return max(1, MIN_POSITIONS // max(1, positions))


def _group_equal(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Yield runs of consecutive batches that differ only in their rows."""
    for _, group in groupby(batches, key=_describe):
        yield list(group)


def _join(group: list[Batch]) -> list[Batch]:
    """Join batches whose rows are grouped."""
    return [_concatenate(group)] if _count_rows_per_group(group[0]) > 1 else group


def _describe(batch: Batch) -> Any:
    """Return everything except the rows; batches with values other than tensors are never equal."""
    return [
        (key, value.shape[1:], value.dtype) if isinstance(value, torch.Tensor) else object()
        for key, value in (*enumerate(batch.args), *batch.kwargs.items())
    ]


def _concatenate(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    return replace(
        first,
        args=tuple(torch.cat(items) for items in zip(*(batch.args for batch in batches), strict=True)),
        kwargs={key: torch.cat([batch.kwargs[key] for batch in batches]) for key in first.kwargs},
        keep=None if first.keep is None else torch.cat([batch.keep for batch in batches if batch.keep is not None]),
    )


def _has_independent_rows(model: nn.Module, batch: Batch, device: torch.device) -> bool:
    """Whether the outputs for a row do not change if the batch has another one."""
    if any(weight.is_meta for weight in model.parameters()):
        return not _get_main_tensor(batch).is_floating_point()  # a language model that is loaded block by block
    try:
        alone, together = (batch.select_rows(slice(count)).run(model, device) for count in (1, 2))
    except CalibrationError:
        return False
    pairs = list(zip(iterate_tensors(alone), iterate_tensors(together), strict=False))
    return bool(pairs) and all(_is_first_row(one, two) for one, two in pairs)


def _is_first_row(alone: torch.Tensor, together: torch.Tensor) -> bool:
    if alone.ndim == 0 or alone.shape[1:] != together.shape[1:] or (len(alone), len(together)) != (1, 2):
        return alone.ndim == 0  # a loss over all rows
    difference = (alone[0].float() - together[0].float()).abs().max() if alone.numel() else torch.zeros(())
    return bool(difference <= TOLERANCE * alone.float().abs().max().clamp(min=1e-30)) if alone.numel() else True
