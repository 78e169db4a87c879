"""Calibration data from files."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from secateur.errors import CalibrationError

__all__ = ["ROWS", "array_batches", "evenly", "text_batches"]

ROWS = 8
"""Rows of an array that the model sees at once."""

UNNAMED = re.compile(r"arr_\d+")
"""What NumPy calls an array that was given no name."""


def text_batches(tokenizer: Any, text: str, sequences: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Pieces of a text, evenly spaced through it, one a batch.

    Args:
        tokenizer: The model's own.
        text: Plain text.
        sequences: How many pieces; fewer if the text has no more.
        length: Tokens in each.

    Raises:
        CalibrationError: The text is shorter than one piece.
    """
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
        CalibrationError: It cannot be read, holds nothing, or its arrays differ in their number of rows.
    """
    arrays = _arrays(file)
    rows = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(rows) != 1 or rows == {0}:
        found = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "none"
        raise CalibrationError(f"{str(file)!r} must hold arrays with one row per example, found {found}.")
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
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with np.load(file, allow_pickle=False) as found:
            return {name: torch.from_numpy(found[name]) for name in found.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError) as error:
        raise CalibrationError(f"{str(file)!r} cannot be read ({error}).") from error
