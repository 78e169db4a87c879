"""Make calibration batches from texts and from arrays in files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from secateur._third_party import translate_errors
from secateur._wording import format_list, format_value
from secateur.artifact.pytorch import to_torch
from secateur.artifact.reader import RawTensor
from secateur.artifact.safetensors_file import TensorFile
from secateur.errors import CalibrationError
from secateur.models.archives import read_npz

__all__ = ["BATCH_ROWS", "MAX_ROWS", "join_batches", "make_text_batches", "read_array_batches", "select_evenly"]

BATCH_ROWS = 8
"""Rows of an array per batch."""

MAX_ROWS = 1_000_000
"""Maximum rows in a file; calibration needs a few hundred."""

UNNAMED = re.compile(r"arr_\d+")
"""Matches the names that NumPy gives to arrays saved without a name."""

DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    }
)
"""Data types of model inputs."""


def make_text_batches(tokenizer: Any, text: str, sequences: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Cut evenly spaced sequences out of a text, one per batch.

    Args:
        tokenizer: The tokenizer of the model.
        text: Plain text.
        sequences: Number of sequences; fewer if the text is short.
        length: Tokens per sequence.

    Raises:
        CalibrationError: The tokenizer fails, or the text is shorter than one sequence.
    """
    with translate_errors(CalibrationError, "The tokenizer cannot read the text for calibration"):
        tokens = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long)
        windows = tokens[: len(tokens) // length * length].view(-1, length)
    if len(windows) == 0:
        raise CalibrationError(
            f"The text for calibration must have at least {length:,} tokens, the length of a sequence, found "
            f"{len(tokens):,}. Use a longer text or shorter sequences."
        )
    return [{"input_ids": window.unsqueeze(0)} for window in select_evenly(windows, sequences)]


def read_array_batches(file: Path) -> list[Any]:
    """Read inputs from a file, `BATCH_ROWS` rows per batch.

    Args:
        file: ``.npz`` or ``.safetensors``. A single array, or arrays without names, are positional arguments of the
            model; named arrays are keyword arguments.

    Raises:
        CalibrationError: The file cannot be read or is empty, its arrays have different numbers of rows, or an array
            has ``nan`` or a data type that models do not accept.
    """
    arrays = _read_tensors(file)
    rows = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(rows) != 1 or not 0 < max(rows) <= MAX_ROWS:
        shapes = format_list(f"{format_value(name)} {list(array.shape)}" for name, array in arrays.items()) or "none"
        raise CalibrationError(
            f"{str(file)!r} must have arrays with one row per example, at most {MAX_ROWS:,}, found {shapes}."
        )
    for name, array in arrays.items():
        if array.dtype not in DTYPES:
            raise CalibrationError(
                f"Array {format_value(name)} in {str(file)!r} has type {array.dtype}. Convert it to float32."
            )
        if torch.isnan(array).any():
            raise CalibrationError(f"Array {format_value(name)} in {str(file)!r} must not contain nan.")
    parts = {name: array.split(BATCH_ROWS) for name, array in arrays.items()}
    if len(arrays) == 1 or all(map(UNNAMED.fullmatch, arrays)):
        return list(zip(*parts.values(), strict=True))
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]


def join_batches(batches: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join batches of named arguments along their first axis.

    Examples:
        >>> join_batches([{"x": torch.zeros(1, 3)}, {"x": torch.zeros(1, 3)}])["x"].shape
        torch.Size([2, 3])
    """
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def select_evenly(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Select at most `count` evenly spaced rows.

    Examples:
        >>> select_evenly(torch.arange(10), 4)
        tensor([0, 2, 5, 7])
    """
    count = min(count, len(rows))
    return rows[[index * len(rows) // count for index in range(count)]]


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    with translate_errors(CalibrationError, f"{str(file)!r} cannot be read"):
        if file.suffix == ".safetensors":
            tensors = TensorFile(file)
            return {name: to_torch(RawTensor(tensors[name].dtype, tensors.read(name))) for name in tensors}
        return {name: torch.from_numpy(array) for name, array in read_npz(file).items()}
