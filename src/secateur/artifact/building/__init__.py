"""Limits on the models that descriptions ask for, which are a few bytes and may have been written by anybody."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur._wording import format_value
from secateur.artifact.files import read_small_file
from secateur.artifact.safetensors_file import parsed_json
from secateur.errors import ArtifactError

__all__ = ["MAX_TENSORS", "NO_WEIGHTS", "SPARE_NUMBERS", "Limits", "check_config", "read_config"]

SPARE_NUMBERS = 1 << 26
"""Numbers, 256 MiB of float32, that a model may have beyond those that are stored for it."""

MAX_REPEATED = 4
"""Times that a model may hold each stored number: weights that are tied later are built for the encoder, the
decoder, the output layer and what they share."""

MAX_SPLIT = 4
"""Tensors and modules of a model for each stored tensor, which may be those of several layers in one."""

SPARE_TENSORS = 20_000

MAX_TENSORS = 250_000
"""Modules, parameters and buffers of a model of which no weights are stored."""

MAX_CONFIG_BYTES = 16_000_000
"""Of ``config.json``; the largest have a name for each of some ten thousand labels."""

MAX_COUNTS: Mapping[str, int] = {
    r"(layer|block|stage|depth|codebook|quantizer)s?": 2_000,
    r"(head|expert|group)s?": 100_000,
    r"labels": 1_000_000,
}
"""End of a name in ``config.json`` → the most that it may count."""

COUNTS = {re.compile(rf"(.*_)?{ending}"): most for ending, most in MAX_COUNTS.items()}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model may have at most.

    Attributes:
        tensors: Modules, parameters and buffers.
        numbers: Numbers in its parameters and buffers; ``None``: any, for nothing is allocated.
    """

    tensors: int
    numbers: int | None = None

    @classmethod
    def for_stored(cls, tensors: int, numbers: int) -> Limits:
        """The limits of a model of which that many tensors with that many numbers are stored."""
        return cls(MAX_SPLIT * tensors + SPARE_TENSORS, MAX_REPEATED * numbers + SPARE_NUMBERS)

    def check(self, tensors: int, numbers: int, path: Path) -> None:
        """Refuse a model that has more.

        Raises:
            ArtifactError: It has.
        """
        if tensors > self.tensors:
            raise ArtifactError(
                f"{path}: describes a model of more than {self.tensors:,} modules and tensors, far more than there are "
                f"weights for."
                if self.numbers is not None
                else f"{path}: describes a model of more than {self.tensors:,} modules and tensors, the most that "
                f"are built."
            )
        if self.numbers is not None and numbers > self.numbers:
            raise ArtifactError(
                f"{path}: describes a model of {numbers:,} numbers or more, and its weights allow for "
                f"{self.numbers:,}. The description belongs to another model."
            )


NO_WEIGHTS = Limits(MAX_TENSORS)
"""The limits of a model that is described, and never allocated."""


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a ``config.json`` whose counts of layers, heads and the like no model has.

    Such numbers are lengths of loops and lists before anything else looks at them.

    Args:
        config: Its content.
        path: Where it is, for the message.

    Raises:
        ArtifactError: It counts too many.
    """
    for name, found in _numbers(config):
        for ending, most in COUNTS.items():
            if found > most and ending.fullmatch(name):
                raise ArtifactError(f"{path}: {format_value(name)} must be {most:,} at the most, found {found:,}.")


def read_config(path: Path) -> dict[str, Any]:
    """What a ``config.json`` holds.

    Raises:
        ArtifactError: It is no JSON object, or larger than any.
    """
    return parsed_json(read_small_file(path, MAX_CONFIG_BYTES), path)


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number with the name that it, or the list with it, has."""
    left = list(config.items())
    while left:
        name, found = left.pop()
        if isinstance(found, dict):
            left += found.items()
        elif isinstance(found, list):
            left += [(name, item) for item in found]
        elif isinstance(found, int | float) and not isinstance(found, bool):
            yield name, found
