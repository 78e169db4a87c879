"""The limits that SECURITY.md tells people are those in the code."""

from pathlib import Path

import pytest

from secateur import _locks, _wording, _yaml
from secateur.artifact import archives, building, choice, companions, foreign, manifest, safetensors_file
from secateur.models import calibration

TEXT = (Path(__file__).parents[1] / "SECURITY.md").read_text("utf-8")
COUNTS = tuple(building.MAX_COUNTS.values())


def batches() -> int:
    pytest.importorskip("torch")
    from secateur.models.pytorch.batches import MAX_ROWS

    return MAX_ROWS


def row_of(what: str) -> str:
    """The second cell of the row of the limits that begins so."""
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| {what}")]
    return row.split("|")[2].strip()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("parameters of a model", f"{building.MAX_REPEATED} times the stored ones, plus {building.SPARE_NUMBERS:,}"),
        (
            "modules and tensors",
            f"{building.MAX_SPLIT} per stored tensor, plus {building.SPARE_TENSORS:,}; "
            f"{building.MAX_TENSORS:,} if no weights are stored",
        ),
        ("layers in", f"{COUNTS[0]:,}; {COUNTS[1]:,}; {COUNTS[2]:,}"),
        ("manifest, index", f"{manifest.MAX_BYTES:,} bytes each"),
        ("`config.json`", f"{building.MAX_CONFIG_BYTES:,} bytes; {companions.MAX_COMPANION_BYTES:,} bytes"),
        ("a packed tensor", f"{choice.MOST_SAVED:,} times its packed size"),
        (
            "decompressed size",
            f"{archives.MAX_EXPANSION} times its size, or {archives.SPARE_BYTES >> 20} MiB if that is more",
        ),
        ("calibration text", f"{calibration.MAX_TEXT_BYTES:,} bytes; {batches():,} rows"),
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
def test_a_documented_limit_is_that_of_the_code(what: str, expected: str) -> None:
    assert row_of(what) == expected


def test_manifests_indices_and_headers_have_one_limit() -> None:
    assert manifest.MAX_BYTES == foreign.MAX_INDEX_BYTES == safetensors_file.MOST_HEADER_BYTES
