"""Parse JSON files from untrusted sources, which are limited in size and must not have duplicate keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secateur._files import read_small_file
from secateur._memory import explain_out_of_memory
from secateur.errors import ArtifactError

__all__ = ["parse_json", "parse_json_list", "read_json"]


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a file with one JSON object.

    Raises:
        ArtifactError: The file cannot be read, is larger than `max_bytes`, or is not a valid JSON object.
    """
    return parse_json(read_small_file(path, max_bytes), path)


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object in which every key is unique and every number is finite.

    Args:
        text: The content of a file.
        path: The file, for messages.

    Raises:
        ArtifactError: The text is not a valid JSON object.
    """
    value = _parse(text, path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: must be a JSON object, found {type(value).__name__}.")
    return value


def parse_json_list(text: bytes, path: Path) -> list[Any]:
    """Parse a JSON list; see `parse_json`."""
    value = _parse(text, path)
    if not isinstance(value, list):
        raise ArtifactError(f"{path}: must be a JSON list, found {type(value).__name__}.")
    return value


def _parse(text: bytes, path: Path) -> Any:
    try:
        with explain_out_of_memory(f"{path}: cannot be read", len(text)):
            return json.loads(text, object_pairs_hook=_build_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ArtifactError(f"{path}: is not valid JSON ({reason}).") from error


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key appears twice")
    return mapping


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
