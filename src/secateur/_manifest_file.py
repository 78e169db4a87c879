"""The manifest of an artifact as a JSON file with its own digest; `secateur.artifact.manifest` models its content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from secateur._files import FileDigest, read_small_file
from secateur._json import parse_json
from secateur._wording import format_value
from secateur.errors import ArtifactError

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "format_manifest",
    "is_artifact",
    "parse_manifest",
    "read_listed_files",
]

MANIFEST = "secateur.json"
"""The file that makes a folder an artifact."""

FORMAT = "secateur"

FORMAT_VERSION: Literal[1] = 1

MAX_MANIFEST_BYTES = 100_000_000
"""Twice the size of a manifest of a hundred thousand tensors."""

BLANK = "0" * 64
"""What stands in place of the digest while the digest is computed."""


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds a manifest."""
    return os.path.isfile(folder / MANIFEST)


def parse_manifest(text: bytes, path: Path) -> dict[str, Any]:
    """Parse the content of a manifest, without its digest.

    Raises:
        ArtifactError: The manifest is damaged, or of a version of the format that is not known.
    """
    data = parse_json(text, path)
    version = data.get("format_version")
    if data.get("format") == FORMAT and type(version) is int and version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: has version {version} of the format, and this version of Secateur reads up to {FORMAT_VERSION}. "
            f"Install a newer one."
        )
    if type(version) is not int:
        raise ArtifactError(f"{path}: format_version must be a whole number, found {format_value(version)}.")
    digest = data.pop("sha256", None)
    if not isinstance(digest, str) or not digest.isascii() or digest != _digest(text, digest):
        raise ArtifactError(f"{path}: was changed since it was written (its own sha256 does not match).")
    return data


def format_manifest(data: Mapping[str, Any]) -> str:
    """Write a manifest as JSON that begins with its own digest."""
    text = json.dumps({"sha256": BLANK} | dict(data), indent=1) + "\n"
    return text.replace(BLANK, _digest(text.encode(), BLANK), 1)


def read_listed_files(folder: Path) -> dict[str, FileDigest]:
    """Read from the manifest of an artifact which files are beside its shards.

    Raises:
        ArtifactError: The manifest is damaged, or of a version of the format that is not known.
    """
    path = folder / MANIFEST
    data = parse_manifest(read_small_file(path, MAX_MANIFEST_BYTES), path)
    files = data.get("files")
    entries = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in entries):
        raise ArtifactError(f"{path}: files must map each name to a size and a sha256, found {format_value(files)}.")
    return {name: FileDigest(**entry) for name, entry in data["files"].items()}


def _digest(text: bytes, written: str) -> str:
    """SHA-256 of a manifest in which zeros stand in place of the digest written in it."""
    return hashlib.sha256(text.replace(written.encode(), b"0" * len(written), 1)).hexdigest()
