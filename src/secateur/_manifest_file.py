"""Read and write the manifest of an artifact as JSON with its own digest.

`secateur.artifact.manifest` models the content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
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
    "is_file_name",
    "parse_manifest",
    "read_listed_files",
]

MANIFEST = "secateur.json"
"""The manifest file, which makes a folder an artifact."""

FORMAT = "secateur"

FORMAT_VERSION: Literal[1] = 1

MAX_MANIFEST_BYTES = 100_000_000
"""Twice the size of a manifest with 100,000 tensors."""

NAME_PART = r"""(?![. ])[^/\\:*?"<>|~$%`]*[^/\\:*?"<>|~$%`. ]"""

FILE_NAME = re.compile(f"{NAME_PART}(/{NAME_PART})*")
"""Matches paths within the folder on any operating system, except hidden files."""

MAX_FILE_NAME = 1000

BLANK_DIGEST = "0" * 64
"""Placeholder for the digest while it is computed."""


def is_artifact(folder: Path) -> bool:
    """Whether a folder has a manifest."""
    return os.path.isfile(folder / MANIFEST)


def is_file_name(name: str) -> bool:
    """Whether a manifest may list a file of this name, a path within the folder of the artifact.

    Examples:
        >>> is_file_name("1_Pooling/config.json"), is_file_name("../other.json")
        (True, False)
    """
    is_plain = name.isprintable() and unicodedata.is_normalized("NFKC", name)
    return is_plain and len(name) <= MAX_FILE_NAME and name != MANIFEST and FILE_NAME.fullmatch(name) is not None


def parse_manifest(text: bytes, path: Path) -> dict[str, Any]:
    """Parse the content of a manifest, without its digest.

    Raises:
        ArtifactError: The manifest is damaged, or its version of the format is unknown.
    """
    data = parse_json(text, path)
    version = data.get("format_version")
    if data.get("format") == FORMAT and type(version) is int and version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: has version {version} of the format, but this version of Secateur reads up to {FORMAT_VERSION}. "
            f"Install a newer version."
        )
    if type(version) is not int:
        raise ArtifactError(f"{path}: format_version must be a whole number, found {format_value(version)}.")
    digest = data.pop("sha256", None)
    if not isinstance(digest, str) or not digest.isascii() or digest != _compute_digest(text, digest):
        raise ArtifactError(f"{path}: has changed since it was written (its own sha256 does not match).")
    return data


def format_manifest(data: Mapping[str, Any]) -> str:
    """Format a manifest as JSON that begins with its own digest."""
    text = json.dumps({"sha256": BLANK_DIGEST} | dict(data), indent=1) + "\n"
    return text.replace(BLANK_DIGEST, _compute_digest(text.encode(), BLANK_DIGEST), 1)


def read_listed_files(folder: Path) -> dict[str, FileDigest]:
    """Read the names and digests of the companion files from the manifest of an artifact.

    Raises:
        ArtifactError: The manifest is damaged, or its version of the format is unknown.
    """
    path = folder / MANIFEST
    data = parse_manifest(read_small_file(path, MAX_MANIFEST_BYTES), path)
    files = data.get("files")
    entries = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in entries):
        raise ArtifactError(f"{path}: files must map each name to a size and a sha256, found {format_value(files)}.")
    return {name: FileDigest(**entry) for name, entry in data["files"].items()}


def _compute_digest(text: bytes, digest: str) -> str:
    """Compute the SHA-256 of a manifest after replacing the digest in it with zeros."""
    return hashlib.sha256(text.replace(digest.encode(), b"0" * len(digest), 1)).hexdigest()
