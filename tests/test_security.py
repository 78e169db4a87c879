"""Tests that the limits in SECURITY.md match those in the code."""

from pathlib import Path

import pytest

from secateur import _locks, _manifest_file, _model_limits, _wording, _yaml
from secateur._huggingface import companions, config, folders
from secateur.artifact import packing_choice, safetensors_file
from secateur.models import archives, calibration

TEXT = (Path(__file__).parents[1] / "SECURITY.md").read_text("utf-8")
COUNTS = tuple(config.MAX_COUNTS.values())


def count_batches() -> int:
    pytest.importorskip("torch")
    from secateur.models.pytorch.batches import MAX_ROWS

    return MAX_ROWS


def read_limit(what: str) -> str:
    """Return the second cell of the row whose first cell starts with `what`."""
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| {what}")]
    return row.split("|")[2].strip()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (
            "parameters of a model",
            f"{_model_limits.MAX_COPIES} times the stored ones, plus {_model_limits.SPARE_NUMBERS:,}",
        ),
        (
            "modules and tensors",
            f"{_model_limits.MAX_SPLIT} per stored tensor, plus {_model_limits.SPARE_TENSORS:,}; "
            f"{_model_limits.MAX_TENSORS:,} if no weights are stored",
        ),
        ("layers in", f"{COUNTS[0]:,}; {COUNTS[1]:,}; {COUNTS[2]:,}"),
        ("manifest, index", f"{_manifest_file.MAX_MANIFEST_BYTES:,} bytes each"),
        ("`config.json`", f"{config.MAX_CONFIG_BYTES:,} bytes; {companions.MAX_COMPANION_BYTES:,} bytes"),
        ("a packed tensor", f"{packing_choice.MAX_COMPRESSION:,} times its packed size"),
        (
            "decompressed size",
            f"{archives.MAX_EXPANSION} times its size, or {archives.MIN_UNPACKED_LIMIT >> 20} MiB if that is more",
        ),
        ("calibration text", f"{calibration.MAX_TEXT_BYTES:,} bytes; {count_batches():,} rows"),
        (
            "a configuration",
            f"{_yaml.MAX_CHARACTERS:,} characters, {_yaml.MAX_DEPTH} levels, {_yaml.MAX_VALUES:,} values, "
            f"{_yaml.MAX_ALIASES:,} aliases",
        ),
        (
            "a message",
            f"{_wording.MAX_MESSAGE:,} characters; {_wording.MAX_LINE:,} characters, with the middle elided",
        ),
        (
            "waiting for",
            f"{_locks.MAX_SECONDS:.0f} seconds, with a warning after {_locks.SECONDS_BEFORE_WARNING:.0f}",
        ),
    ],
)
def test_documented_limits_match_the_code(what: str, expected: str) -> None:
    assert read_limit(what) == expected


def test_manifests_indices_and_headers_have_the_same_limit() -> None:
    assert _manifest_file.MAX_MANIFEST_BYTES == folders.MAX_INDEX_BYTES == safetensors_file.MAX_HEADER_BYTES
