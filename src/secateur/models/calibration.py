"""Sample calibration data from a text, from arrays in a file, or from Python's documentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from secateur._files import read_small_file
from secateur._third_party import translate_errors
from secateur._wording import format_count
from secateur.errors import CalibrationError, ConfigError
from secateur.models.references import TrainedModel

__all__ = ["DEFAULT_LENGTH", "DEFAULT_SEQUENCES", "CalibrationSample", "sample_calibration"]

ARRAY_SUFFIXES = (".npz", ".safetensors")
"""Suffixes of files with arrays that are passed to the model unchanged."""

MAX_TEXT_BYTES = 100_000_000
"""Maximum size of a text; calibration uses only a few sequences of it."""

DEFAULT_SEQUENCES = 32

DEFAULT_LENGTH = 512
"""Tokens per sequence."""


@dataclass(frozen=True, slots=True)
class CalibrationSample:
    """Calibration data.

    Attributes:
        batches: Inputs that the model accepts.
        description: Their source, for messages.
    """

    batches: list[Any]
    description: str


def sample_calibration(
    trained: TrainedModel, file: Path | None, sequences: int | None, length: int | None
) -> CalibrationSample:
    """Sample calibration data for a torch model.

    Args:
        trained: The model.
        file: Inputs as ``.npz`` or ``.safetensors``, or plain text for the model's tokenizer. ``None``: Python's
            documentation, which is in English.
        sequences: Number of sequences of text; ``None``: `DEFAULT_SEQUENCES`.
        length: Tokens per sequence; ``None``: `DEFAULT_LENGTH`, or the maximum of the model if that is less.

    Raises:
        CalibrationError: The file cannot be read or is unsuitable, or there is no tokenizer.
        ConfigError: `sequences` or `length` is given, but the file has arrays.
    """
    from secateur.models.pytorch import load_tokenizer, make_text_batches, read_array_batches

    if file is not None and file.suffix in ARRAY_SUFFIXES:
        if sequences is not None or length is not None:
            raise ConfigError(f"sequences and length are for text, and {str(file)!r} has arrays. Leave them out.")
        return CalibrationSample(read_array_batches(file), f"the inputs in {file}")
    if trained.path is None:
        raise CalibrationError(
            f"calibration must be a file of inputs, {' or '.join(ARRAY_SUFFIXES)}, for a model without a tokenizer, "
            f"found {'none' if file is None else repr(str(file))}."
        )
    text = read_python_documentation() if file is None else _read_text(file)
    limit = getattr(trained.model.config, "max_position_embeddings", None)
    length = length or (min(DEFAULT_LENGTH, limit) if isinstance(limit, int) and limit > 0 else DEFAULT_LENGTH)
    batches = make_text_batches(load_tokenizer(trained.path), text, sequences or DEFAULT_SEQUENCES, length)
    source = "Python's own documentation (pydoc_data.topics)" if file is None else str(file)
    description = f"{format_count(len(batches), 'sequence')} of {format_count(length, 'token')} from {source}"
    return CalibrationSample(batches, description)


def read_python_documentation() -> str:
    """Read the language documentation that comes with Python, half a million characters."""
    return "\n\n".join(topics[topic] for topic in sorted(topics))


def _read_text(file: Path) -> str:
    message = (
        f"{str(file)!r} must be plain text in UTF-8, or a file of inputs that ends in {' or '.join(ARRAY_SUFFIXES)}"
    )
    with translate_errors(CalibrationError, message):
        return read_small_file(file, MAX_TEXT_BYTES).decode("utf-8-sig")
