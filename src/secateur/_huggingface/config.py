"""Read and check ``config.json`` before a model is built from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from secateur._json import read_json
from secateur._wording import format_value
from secateur.errors import ArtifactError

__all__ = ["MAX_CONFIG_BYTES", "MAX_COUNTS", "check_config", "read_config_json"]

MAX_CONFIG_BYTES = 16_000_000
"""The largest configurations in use list about ten thousand labels."""

MAX_COUNTS: Mapping[str, int] = {
    r"(layer|block|stage|depth|codebook|quantizer)s?": 2_000,
    r"(head|expert|group)s?": 100_000,
    r"labels": 1_000_000,
}
"""End of the name of a setting → its maximum."""

COUNT_PATTERNS = {re.compile(rf"(.*_)?{ending}"): limit for ending, limit in MAX_COUNTS.items()}


def read_config_json(path: Path) -> dict[str, Any]:
    """Read a ``config.json``.

    Raises:
        ArtifactError: The file cannot be read, is too large, or is not a JSON object.
    """
    return read_json(path, MAX_CONFIG_BYTES)


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise `ArtifactError` if a configuration has larger numbers of layers, heads and the like than any real model.

    transformers uses such counts as lengths of loops and lists before any other check.

    Args:
        config: The configuration.
        path: Its file, for the message.
    """
    for name, number in _iterate_numbers(config):
        for pattern, limit in COUNT_PATTERNS.items():
            if number > limit and pattern.fullmatch(name):
                raise ArtifactError(f"{path}: {format_value(name)} must be at most {limit:,}, found {number:,}.")


def _iterate_numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield every number with its key, or the key of the list that contains it."""
    pending = list(config.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += [(name, item) for item in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
