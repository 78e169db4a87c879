"""What a model is shown while it is pruned, by reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur._files import read_small_file
from secateur._third_party import translate_errors
from secateur._wording import format_count
from secateur.errors import CalibrationError, ConfigError
from secateur.models.text import documentation
from secateur.models.trained import TrainedModel

__all__ = ["LENGTH", "SEQUENCES", "Sample", "sample"]

ARRAYS = (".npz", ".safetensors")
"""Files of inputs that are ready for the model."""

MAX_TEXT_BYTES = 100_000_000
"""Of a text, of which a few pieces are taken."""

SEQUENCES = 32
LENGTH = 512
"""Sequences of a text, and tokens in each, where nobody says otherwise: they serve a language model."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Calibration data.

    Attributes:
        batches: As the model takes them.
        description: What they are, for a person.
    """

    batches: list[Any]
    description: str


def sample(found: TrainedModel, file: Path | None, sequences: int | None, length: int | None) -> Sample:
    """Calibration data for a torch model.

    Args:
        found: The model.
        file: Inputs as ``.npz`` or ``.safetensors``, or plain text for the model's own tokenizer. ``None``: Python's
            documentation, which is English.
        sequences: Pieces of text; ``None``: `SEQUENCES`.
        length: Tokens in each; ``None``: `LENGTH`, or as many as the model takes if these are fewer.

    Raises:
        CalibrationError: The file cannot be read or does not serve, or there is no tokenizer.
        ConfigError: Text is asked for, and the file holds arrays.
    """
    from secateur.models.pytorch import array_batches, text_batches, tokenizer_of

    if file is not None and file.suffix in ARRAYS:
        if sequences is not None or length is not None:
            raise ConfigError(f"sequences and length are about text, and {str(file)!r} holds arrays. Leave them out.")
        return Sample(array_batches(file), f"the inputs in {file}")
    if found.path is None:
        raise CalibrationError(
            f"calibration must be a file of inputs, {' or '.join(ARRAYS)}, for a model that comes without a tokenizer, "
            f"found {'none' if file is None else repr(str(file))}."
        )
    text = documentation() if file is None else _text(file)
    most = getattr(found.model.config, "max_position_embeddings", None)
    length = length or (min(LENGTH, most) if isinstance(most, int) and most > 0 else LENGTH)
    batches = text_batches(tokenizer_of(found.path), text, sequences or SEQUENCES, length)
    source = "Python's own documentation (pydoc_data.topics)" if file is None else str(file)
    return Sample(batches, f"{format_count(len(batches), 'sequence')} of {format_count(length, 'token')} from {source}")


def _text(file: Path) -> str:
    message = f"{str(file)!r} must be plain text in UTF-8, or a file of inputs that ends in {' or '.join(ARRAYS)}"
    with translate_errors(CalibrationError, message):
        return read_small_file(file, MAX_TEXT_BYTES).decode("utf-8-sig")
