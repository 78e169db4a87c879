"""Calibration data from files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from secateur._third_party import translate_errors
from secateur._wording import format_list, format_value
from secateur.artifact.pytorch import to_torch
from secateur.artifact.reader import RawTensor
from secateur.artifact.safetensors_file import TensorFile
from secateur.errors import CalibrationError
from secateur.models.arrays import read_arrays

__all__ = ["MAX_ROWS", "ROWS", "array_batches", "evenly", "text_batches"]

ROWS = 8
"""Rows of an array that the model sees at once."""

MAX_ROWS = 1_000_000
"""Of a file; calibration takes some hundreds."""

UNNAMED = re.compile(r"arr_\d+")
"""What NumPy calls an array that was given no name."""

DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    }
)
"""Types that models compute with."""


def text_batches(tokenizer: Any, text: str, sequences: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Pieces of a text, evenly spaced through it, one a batch.

    Args:
        tokenizer: The model's own.
        text: Plain text.
        sequences: How many pieces; fewer if the text has no more.
        length: Tokens in each.

    Raises:
        CalibrationError: The tokenizer fails, or the text is shorter than one piece.
    """
    with translate_errors(CalibrationError, "The tokenizer cannot read the text for calibration"):
        tokens = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long)
        windows = tokens[: len(tokens) // length * length].view(-1, length)
    if len(windows) == 0:
        raise CalibrationError(
            f"The text for calibration must have at least {length:,} tokens, the length of a sequence, found "
            f"{len(tokens):,}. Give more text or shorter sequences."
        )
    return [{"input_ids": window.unsqueeze(0)} for window in evenly(windows, sequences)]


def array_batches(file: Path) -> list[Any]:
    """The inputs in a file, `ROWS` rows a batch.

    Args:
        file: ``.npz`` or ``.safetensors``. A single array is the model's first argument, and so are arrays that NumPy
            named by number the first, the second …; others are arguments of their own names.

    Raises:
        CalibrationError: It cannot be read, holds nothing, its arrays differ in their number of rows, or one of them
            holds ``nan`` or is of a type that models do not compute with.
    """
    arrays = _arrays(file)
    rows = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(rows) != 1 or not 0 < max(rows) <= MAX_ROWS:
        found = format_list(f"{format_value(name)} {list(array.shape)}" for name, array in arrays.items()) or "none"
        raise CalibrationError(
            f"{str(file)!r} must hold arrays with one row per example, {MAX_ROWS:,} at the most, found {found}."
        )
    for name, array in arrays.items():
        if array.dtype not in DTYPES:
            raise CalibrationError(
                f"Array {format_value(name)} in {str(file)!r} has type {array.dtype}. Convert it to float32."
            )
        if torch.isnan(array).any():
            raise CalibrationError(f"Array {format_value(name)} in {str(file)!r} must hold numbers, found nan.")
    parts = {name: array.split(ROWS) for name, array in arrays.items()}
    if len(arrays) == 1 or all(map(UNNAMED.fullmatch, arrays)):
        return list(zip(*parts.values(), strict=True))
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]


def evenly(rows: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` of the rows, evenly spaced through them.

    Example:
        >>> evenly(torch.arange(10), 4)
        tensor([0, 2, 5, 7])
    """
    count = min(count, len(rows))
    return rows[[index * len(rows) // count for index in range(count)]]


def _arrays(file: Path) -> dict[str, torch.Tensor]:
    with translate_errors(CalibrationError, f"{str(file)!r} cannot be read"):
        if file.suffix == ".safetensors":
            held = TensorFile(file)
            return {name: to_torch(RawTensor(held[name].dtype, held.read(name))) for name in held}
        return {name: torch.from_numpy(array) for name, array in read_arrays(file).items()}
