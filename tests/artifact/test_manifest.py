"""Manifests that lie, with their own digest made right: where each is caught, and what the error says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from artifact.forgery import (
    COMPANION,
    SHARD,
    artifact,
    forged,
    header_of,
    overwritten,
    reheaded,
    sealed,
    shard_of,
    stored,
)
from secateur._manifest_file import MANIFEST
from secateur.artifact import Artifact, convert, inspect, load, save, verify
from secateur.errors import ArtifactError

NAMES = ("groups.weight", "blocks.weight", "list.weight", "bitmask.weight", "dense.weight", "norm.bias")
GROUPS, BLOCKS, LIST, DENSE, BIAS = (f"tensors/{NAMES[place]}" for place in (0, 1, 2, 4, 5))
ABSENT = object()

OPENED = Artifact


def read(folder: Path) -> None:
    for tensor in Artifact(folder).values():
        assert tensor.bits is not None


def put(data: Any, place: str, value: Any) -> None:
    """Change what stands at a place such as ``"tensors/name/zeros"``."""
    *parts, last = place.replace("%2F", "\0").split("/")
    for part in parts:
        data = data[part]
    last = last.replace("\0", "/")
    if value is ABSENT:
        del data[last]
    else:
        data[last] = value


Use = Callable[[Path], object]

LIES: list[tuple[str, Any, Use, str]] = [
    # What no version of the format has
    ("format", "other", OPENED, "format: Input should be 'secateur'"),
    (
        "format_version",
        2,
        OPENED,
        "version 2 of the format, but this version of Secateur reads up to 1. Install a newer",
    ),
    ("format_version", 10**30, OPENED, "Install a newer version"),
    ("format_version", 0, OPENED, "format_version: Input should be 1"),
    ("format_version", -1, OPENED, "format_version: Input should be 1"),
    ("format_version", True, OPENED, "format_version must be a whole number, found True"),
    ("format_version", 1.0, OPENED, "format_version must be a whole number, found 1.0"),
    ("format_version", "1", OPENED, "format_version must be a whole number, found '1'"),
    ("format_version", None, OPENED, "format_version must be a whole number, found None"),
    ("format_version", ABSENT, OPENED, "format_version must be a whole number, found None"),
    ("format_version", [[[[[1]]]]] * 999, OPENED, "format_version must be a whole number"),
    ("more", 1, OPENED, "more: Extra inputs are not permitted"),
    (f"{GROUPS}/more", 1, OPENED, "tensors.groups.weight.more: Extra inputs are not permitted"),
    (f"{GROUPS}/layout/more", 1, OPENED, "layout.more: Extra inputs are not permitted"),
    (f"{GROUPS}/packing/more", 1, OPENED, "more: Extra inputs are not permitted"),
    (f"{GROUPS}/pruned/more", 1, OPENED, "pruned.more: Extra inputs are not permitted"),
    (f"files/{COMPANION}/more", 1, OPENED, "more: Extra inputs are not permitted"),
    ("tensors", [], OPENED, "tensors: Input should be an object"),
    ("tensors", ABSENT, OPENED, "tensors: Field required"),
    ("shards", ABSENT, OPENED, "shards: Field required"),
    ("written_by", "\x1b[2J", OPENED, r"written_by: '\x1b[2J' cannot be printed"),
    ("model", {"framework": "pytorch", "kind": "pickle", "name": "a"}, OPENED, "model.kind: Input should be"),
    ("model", {"framework": "pytorch", "kind": "code", "name": "a\n"}, OPENED, "cannot be printed"),
    # Shapes and types
    (f"{GROUPS}/shape", [4, 16], OPENED, "tensor 'groups.weight#values' must be BF16 [32, 1], found BF16 [64, 1]"),
    (f"{GROUPS}/shape", [8, 32], OPENED, "must be BF16 [128, 1], found BF16 [64, 1]"),
    (f"{GROUPS}/shape", [8, 15], OPENED, "2:4 does not fit a weight of (8, 1, 15)"),
    (f"{GROUPS}/shape", [128], OPENED, "its layout must name each of its 1 axes once"),
    (f"{GROUPS}/shape", [8, 16, 1], OPENED, "its layout must name each of its 3 axes once"),
    (f"{GROUPS}/shape", [8, -16], OPENED, "Input should be greater than or equal to 0"),
    (f"{GROUPS}/shape", [8, 16.0], OPENED, "valid integer"),
    (f"{GROUPS}/shape", [8, True], OPENED, "valid integer"),
    (f"{GROUPS}/shape", [8, "16"], OPENED, "valid integer"),
    (f"{GROUPS}/shape", [8, 1 << 63], OPENED, "less than"),
    (f"{GROUPS}/shape", [8, 10**40], OPENED, "less than"),
    (f"{GROUPS}/shape", [1 << 62, 1 << 62], OPENED, "is too large"),
    (f"{GROUPS}/shape", [1 << 31, 1 << 30], OPENED, "must be BF16"),
    (f"{GROUPS}/shape", [1 << 62, 0], OPENED, "64 zeros, 0 of them negative, are impossible for 0 numbers"),
    (f"{GROUPS}/shape", [1] * 10_000, OPENED, "shape: Tuple should have at most 64 items"),
    (f"{BLOCKS}/shape", [8, 16], read, "tensor 'blocks.weight' is damaged (its sha256 does not match)"),
    (f"{BLOCKS}/shape", [16, 1 << 30], OPENED, "'blocks.weight#index' must be U8 [536870912], found U8 [8]"),
    (f"{LIST}/shape", [1 << 15, 1 << 15], OPENED, "it is stored in less than 1/1024 of its dense size"),
    (f"{LIST}/shape", [1 << 20, 1 << 20], OPENED, "a list can number at most 4,294,967,295 blocks"),
    (f"{LIST}/shape", [24, 48], read, "tensor 'list.weight' is damaged"),
    (f"{LIST}/shape", [2, 2], OPENED, "570 zeros, 0 of them negative, are impossible for 4 numbers"),
    (f"{DENSE}/shape", [5, 3], OPENED, "tensor 'dense.weight' must be F8_E4M3 [5, 3], found F8_E4M3 [3, 5]"),
    (f"{DENSE}/shape", [1 << 40, 1 << 20], OPENED, "must be F8_E4M3 [1099511627776, 1048576]"),
    (f"{GROUPS}/dtype", "F16", OPENED, "tensor 'groups.weight#values' must be F16 [64, 1], found BF16 [64, 1]"),
    (f"{DENSE}/dtype", "I8", OPENED, "tensor 'dense.weight' must be I8 [3, 5], found F8_E4M3 [3, 5]"),
    (f"{DENSE}/dtype", "F4", OPENED, "dtype must be one of BOOL, U8"),
    (f"{DENSE}/dtype", "x" * 10**6, OPENED, "dtype must be one of BOOL, U8"),
    # Layouts
    (f"{GROUPS}/layout", None, OPENED, "a tensor with a pattern needs a layout"),
    (f"{GROUPS}/layout", ABSENT, OPENED, "a tensor with a pattern needs a layout"),
    (f"{GROUPS}/layout/output_axes", [1], OPENED, "its layout must name each of its 2 axes once"),
    (f"{GROUPS}/layout/output_axes", [], OPENED, "its layout must name each of its 2 axes once"),
    (f"{GROUPS}/layout/output_axes", [0, 0], OPENED, "its layout must name each of its 2 axes once"),
    (f"{GROUPS}/layout/output_axes", [-1], OPENED, "greater than or equal to 0"),
    (f"{GROUPS}/layout/output_axes", [64], OPENED, "less than 64"),
    (f"{GROUPS}/layout/kernel_axes", [0], OPENED, "its layout must name each of its 2 axes once"),
    (f"{GROUPS}/layout/groups", 3, OPENED, "its output channels are not a multiple of its 3 groups"),
    (f"{GROUPS}/layout/groups", 0, OPENED, "greater than or equal to 1"),
    (f"{GROUPS}/layout/groups", 2.0, OPENED, "valid integer"),
    (f"{BLOCKS}/layout", {"output_axes": [1], "input_axes": [0]}, read, "tensor 'blocks.weight' is damaged"),
    (f"{GROUPS}/layout", {"output_axes": [1], "input_axes": [0]}, read, "tensor 'groups.weight' is damaged"),
    (f"{BLOCKS}/layout", {"output_axes": [], "kernel_axes": [0, 1]}, OPENED, "do not tile a weight of (1, 128, 1)"),
    # Packings
    (f"{GROUPS}/packing/kind", "zip", OPENED, "packing: Input tag 'zip' found"),
    (f"{GROUPS}/packing/kind", "\x1b" * 10**6, OPENED, "packing: "),
    (f"{GROUPS}/packing/kind", "blocks", OPENED, "Field required"),
    (f"{GROUPS}/packing/kind", ABSENT, OPENED, "Unable to extract tag"),
    (f"{GROUPS}/packing", {"kind": "dense"}, OPENED, "tensor 'groups.weight' must be BF16 [8, 16], found nothing"),
    (f"{DENSE}/packing", {"kind": "groups", "count": 1, "group": 5}, OPENED, "must be F8_E4M3 [3, 1], found nothing"),
    (f"{BIAS}/packing", {"kind": "groups", "count": 1, "group": 5}, OPENED, "a packed tensor needs a layout"),
    (f"{GROUPS}/packing/count", 1, OPENED, "must be BF16 [32, 1], found BF16 [64, 1]"),
    (f"{GROUPS}/packing/count", 4, OPENED, "4:4 does not fit a weight of (8, 1, 16)"),
    (f"{GROUPS}/packing/count", 0, OPENED, "greater than or equal to 1"),
    (f"{GROUPS}/packing/count", 1 << 62, OPENED, "does not fit a weight"),
    (f"{GROUPS}/packing/count", 2.0, OPENED, "valid integer"),
    (f"{GROUPS}/packing/group", 8, OPENED, "must be BF16 [32, 1], found BF16 [64, 1]"),
    (f"{GROUPS}/packing/group", 3, OPENED, "2:3 does not fit a weight of (8, 1, 16)"),
    (f"{GROUPS}/packing/group", 1, OPENED, "greater than or equal to 2"),
    (f"{GROUPS}/packing/group", 1 << 31, OPENED, "less than"),
    (f"{GROUPS}/packing", {"kind": "groups", "count": 4, "group": 8}, OPENED, "must be U8 [24], found U8 [16]"),
    (f"{GROUPS}/packing", {"kind": "groups", "count": 1, "group": 2}, OPENED, "must be U8 [8], found U8 [16]"),
    (f"{BLOCKS}/packing/block", [2, 1, 1], OPENED, "must be BF16 [16, 2], found BF16 [16, 4]"),
    (f"{BLOCKS}/packing/block", [1, 1, 4], read, "tensor 'blocks.weight' is damaged"),
    (f"{BLOCKS}/packing/block", [3, 1, 1], OPENED, "blocks of (3, 1, 1) do not tile a weight of (16, 1, 8)"),
    (f"{BLOCKS}/packing/block", [4, 2, 1], OPENED, "do not tile a weight"),
    (f"{BLOCKS}/packing/block", [0, 1, 1], OPENED, "greater than or equal to 1"),
    (f"{BLOCKS}/packing/block", [4, 1], OPENED, "Field required"),
    (f"{BLOCKS}/packing/kept", 15, OPENED, "must be BF16 [15, 4], found BF16 [16, 4]"),
    (f"{BLOCKS}/packing/kept", 33, OPENED, "it stores more blocks than it has"),
    (f"{BLOCKS}/packing/kept", 1 << 62, OPENED, "it stores more blocks than it has"),
    (f"{BLOCKS}/packing/kept", -1, OPENED, "greater than or equal to 0"),
    (f"{BLOCKS}/packing/kept", True, OPENED, "valid integer"),
    (f"{BLOCKS}/packing/index", "list", OPENED, "'blocks.weight#index' must be U8 [64], found U8 [8]"),
    (f"{LIST}/packing/index", "bitmap", OPENED, "'list.weight#index' must be U8 [72], found U8 [24]"),
    (f"{LIST}/packing/index", "pickle", OPENED, "Input should be 'bitmap' or 'list'"),
    (f"{BLOCKS}/packing/label", "\n", OPENED, "cannot be printed"),
    (f"{BLOCKS}/packing/label", "x" * 101, OPENED, "at most 100 characters"),
    # Patterns
    (f"{GROUPS}/pattern", "1:4", OPENED, "the pattern must be that of pruned, '2:4', found '1:4'"),
    (f"{GROUPS}/pattern", None, OPENED, "the pattern must be that of pruned, '2:4', found None"),
    (f"{GROUPS}/pruned/pattern", "1:4", OPENED, "the pattern must be that of pruned, '1:4', found '2:4'"),
    (f"{GROUPS}/pruned/units", 127, verify, "no longer '2:4': it has 128 units, but the manifest says 127"),
    (f"{GROUPS}/pruned/units", 63, OPENED, "64 of 63 units cannot be pruned"),
    (f"{GROUPS}/pruned/pruned_units", 65, verify, "64 of its units are zero, but 65 were pruned"),
    (f"{GROUPS}/pruned/pruned_units", 129, OPENED, "129 of 128 units cannot be pruned"),
    (f"{GROUPS}/pruned/error", -0.5, OPENED, "error: Input should be greater than or equal to 0"),
    (f"{GROUPS}/pruned", {"pattern": "2:4", "units": 128}, OPENED, "pruned_units: Field required"),
    (f"{DENSE}/pattern", "2:5", verify, "dense.weight: not '2:5': "),
    (f"{LIST}/pattern", "32x32", verify, "list.weight: not '32x32': "),
    (f"{LIST}/pattern", "nonsense", verify, "list.weight: not 'nonsense': the pattern cannot be verified"),
    (f"{DENSE}/pattern", "1x1", verify, "dense.weight: not '1x1': 0 of its units are zero, but 1 were pruned"),
    (f"{BIAS}/pattern", "1x1", OPENED, "a tensor with a pattern needs a layout"),
    # Numbers and digests
    (f"{GROUPS}/zeros", 63, verify, "groups.weight: 64 zeros (0 of them -0.0), but the manifest says 63"),
    (f"{DENSE}/zeros", 1, verify, "dense.weight: 0 zeros (0 of them -0.0), but the manifest says 1"),
    (f"{GROUPS}/zeros", 129, OPENED, "129 zeros, 0 of them negative, are impossible for 128 numbers"),
    (f"{GROUPS}/negative_zeros", 1, verify, "groups.weight: 64 zeros (0 of them -0.0), but the manifest says 64"),
    (f"{GROUPS}/negative_zeros", 65, OPENED, "64 zeros, 65 of them negative, are impossible for 128 numbers"),
    (f"{GROUPS}/zeros", -1, OPENED, "greater than or equal to 0"),
    (f"{GROUPS}/sha256", "0" * 64, read, "tensor 'groups.weight' is damaged (its sha256 does not match)"),
    (f"{BIAS}/sha256", "0" * 64, read, "tensor 'norm.bias' is damaged (its sha256 does not match)"),
    (f"{GROUPS}/sha256", "0" * 63, OPENED, "sha256: String should match pattern"),
    (f"{GROUPS}/sha256", "0" * 64 + "\n", OPENED, "sha256: String should match pattern"),
    (f"{GROUPS}/sha256", "A" * 64, OPENED, "sha256: String should match pattern"),
    (f"{GROUPS}/sha256", None, OPENED, "sha256: Input should be a valid string"),
    (f"{GROUPS}/layer", "\x1b[2J", OPENED, "cannot be printed"),
    # Files
    (f"{GROUPS}/file", "other.safetensors", OPENED, "is in 'other.safetensors', which is not a shard"),
    (f"{GROUPS}/file", COMPANION, OPENED, "is in 'config.json', which is not a shard"),
    (f"{GROUPS}/file", f"./{SHARD}", OPENED, "which is not a shard"),
    (f"shards/{SHARD}", 1, OPENED, "must have 1 bytes, found"),
    (f"shards/{SHARD}", -1, OPENED, "greater than or equal to 0"),
    (f"shards/{SHARD}", 1 << 62, OPENED, "must have 4,611,686,018,427,387,904 bytes, found"),
    ("shards/more.safetensors", 0, OPENED, "more.safetensors: cannot be read"),
    (f"shards/{COMPANION}", 3, OPENED, "'config.json' is listed both as a shard and as another file"),
    (f"files/{COMPANION}/size", 4, verify, "config.json: has changed since it was written"),
    (f"files/{COMPANION}/sha256", "0" * 64, verify, "config.json: has changed since it was written"),
    (f"files/{COMPANION}/sha256", "0", OPENED, "sha256: String should match pattern"),
    ("files/more.json", {"size": 0, "sha256": "0" * 64}, verify, "more.json: cannot be read"),
    # Aliases
    (
        "aliases",
        {"alias": "unknown"},
        OPENED,
        "'alias' must not be a tensor itself, and 'unknown', which it stands for, must be one",
    ),
    (
        "aliases",
        {"alias": "alias"},
        OPENED,
        "'alias' must not be a tensor itself, and 'alias', which it stands for, must be one",
    ),
    (
        "aliases",
        {"one": "other", "other": "one"},
        OPENED,
        "'one' must not be a tensor itself, and 'other', which it stands for, must be one",
    ),
    (
        "aliases",
        {"one": "other", "other": NAMES[0]},
        OPENED,
        "'one' must not be a tensor itself, and 'other', which it stands for, must be one",
    ),
    ("aliases", {NAMES[0]: NAMES[1]}, OPENED, "alias 'groups.weight' must not be a tensor itself"),
    ("aliases", {"alias": 1}, OPENED, "aliases.alias: Input should be a valid string"),
    ("aliases", {"\x1b": NAMES[0]}, OPENED, "cannot be printed"),
    ("aliases", {"\ud800": NAMES[0]}, OPENED, "Invalid JSON"),
]

ESCAPES = [
    "../x",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a/../../b",
    "a/../b",
    "a//b",
    "a/",
    "/",
    "./a",
    "a/./b",
    ".hidden",
    "a/.hidden",
    "..\\x",
    "a\\b",
    "C:\\x",
    "C:x",
    "~/x",
    "$HOME",
    "a\0b",
    "a\nb",
    "a\n",
    "a ",
    " b",
    "a/b ",
    "a.",
    "\u202ea",
    "\uff41",
    "*",
    MANIFEST,
    "../" * 10**5,
]


def numbered(cases: list[Any]) -> list[Any]:
    return [pytest.param(*case, id=f"{place}-{case[0]}") for place, case in enumerate(cases)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return artifact(tmp_path / "saved", NAMES)


@pytest.mark.parametrize(("place", "lie", "use", "message"), numbered(LIES))
def test_a_manifest_that_lies_is_refused(place: str, lie: Any, use: Use, message: str, folder: Path) -> None:
    """Where `LIES` says: when it is opened, when tensors are read, or by `verify`; never earlier, and never later."""
    forged(folder, lambda data: put(data, place, lie))
    if use is not OPENED:
        Artifact(folder)
    with pytest.raises(ArtifactError, match=re.escape(message)) as caught:
        use(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert all(line.isprintable() for line in text.splitlines())
    assert len(text) < 2500
    with pytest.raises(ArtifactError):
        verify(folder)


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["shards", "files"])
def test_no_name_leaves_the_folder(kind: str, name: str, folder: Path) -> None:
    entry = 3 if kind == "shards" else {"size": 3, "sha256": "0" * 64}
    forged(folder, lambda data: data[kind].update({name: entry}))
    with pytest.raises(ArtifactError, match=r"is not the name of a file in the folder"):
        Artifact(folder)


@pytest.mark.parametrize("name", ["\ud800", "\ud800/a"])
@pytest.mark.parametrize("kind", ["shards", "files"])
def test_no_name_is_half_a_character(kind: str, name: str, folder: Path) -> None:
    forged(folder, lambda data: data[kind].update({name: 3}))
    with pytest.raises(ArtifactError, match=r"secateur.json: "):
        Artifact(folder)


@pytest.mark.parametrize(
    "pattern",
    [
        "nonsense",
        "",
        "0:0",
        "4:2",
        "2:4:8",
        "heads",
        "channels",
        "9" * 50 + "x1",
        "9" * 90 + ":4",
        "-1x4",
        "0x0",
        "1e9x1",
        "1:4",
        "3:7",
        "16x16",
        "channelx1",
        "1xchannel",
    ],
)
def test_another_pattern_is_not_believed(pattern: str, folder: Path) -> None:
    """Though both places name it."""
    claim = {"pattern": pattern, "units": 128, "pruned_units": 64}
    forged(folder, lambda data: data["tensors"][NAMES[0]].update(pattern=pattern, pruned=claim))
    Artifact(folder)
    with pytest.raises(ArtifactError, match=r"groups.weight: no longer '.*': "):
        verify(folder)


def test_two_tensors_cannot_be_one_part(folder: Path) -> None:
    def claimed(data: dict[str, Any]) -> None:
        size = data["tensors"][NAMES[0]]
        data["tensors"][f"{NAMES[0]}#values"] = {
            "file": SHARD, "dtype": size["dtype"], "shape": [64, 1], "zeros": 0, "sha256": "0" * 64
        }  # fmt: skip

    forged(folder, claimed)
    with pytest.raises(ArtifactError, match=r"tensor 'groups.weight#values' belongs to two tensors of the manifest"):
        Artifact(folder)


def test_a_tensor_that_the_manifest_forgets_is_refused(folder: Path) -> None:
    forged(folder, lambda data: put(data, BIAS, ABSENT))
    with pytest.raises(ArtifactError, match=r"'norm.bias' do not belong to any tensor"):
        Artifact(folder)


def test_a_renamed_tensor_is_refused(folder: Path) -> None:
    forged(folder, lambda data: data["tensors"].update(other=data["tensors"].pop(NAMES[5])))
    with pytest.raises(ArtifactError, match=r"tensor 'other' must be F32 \[5\], found nothing"):
        Artifact(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"a"',
        b"\xff",
        b"{}",
        b'{"sha256": "\\ud800"}',
        b'{"format_version": 1, "sha256": "\\ud800"}',
        b'{"format_version": NaN}',
        b'{"format_version": 1, "sha256": ""}',
        b'{"format_version": 1, "sha256": "0"}',
        b'{"a": 1, "a": 2}',
        b"[" * 10**6,
        b'{"a":' * 10**6,
    ],
)
def test_what_is_no_manifest_is_refused(content: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(content)
    for use in (Artifact, verify, inspect, load, lambda found: convert(found, folder.parent / "target")):
        with pytest.raises(ArtifactError, match=MANIFEST):
            use(folder)
    assert not (folder.parent / "target").exists()


def test_a_change_without_its_digest_is_refused(folder: Path) -> None:
    path = folder / MANIFEST
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"written_by": "someone"}, indent=1) + "\n")
    with pytest.raises(ArtifactError, match=r"has changed since it was written \(its own sha256 does not match\)"):
        Artifact(folder)
    path.write_text(sealed(data | {"written_by": "someone"}))
    assert Artifact(folder).manifest.written_by == "someone"


def test_a_manifest_has_a_greatest_size(folder: Path) -> None:
    with (folder / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactError, match="must have at most 100,000,000 bytes, found 1,099,511,627,776"):
        Artifact(folder)


# Indices that lie. All digests are right: the tensor's own is of its dense numbers.


def ascending(index: np.ndarray) -> np.ndarray:
    return index


def bits_in(index: np.ndarray) -> np.ndarray:
    return np.unpackbits(index, bitorder="little")


def packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, bitorder="little")


def with_bit(index: np.ndarray, place: int, value: int) -> np.ndarray:
    bits = bits_in(index)
    assert bits[place] != value
    bits[place] = value
    return packed(bits)


def first(index: np.ndarray, value: int) -> int:
    return int(np.flatnonzero(bits_in(index) == value)[0])


def moved_bit(index: np.ndarray) -> np.ndarray:
    return with_bit(with_bit(index, first(index, 1), 0), first(index, 0), 1)


def numbers_changed(**changes: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(index: np.ndarray) -> np.ndarray:
        numbers = index.view("<u4").copy()
        for place, number in changes.items():
            numbers[int(place.removeprefix("at"))] = number
        return numbers.view(np.uint8)

    return change


def turned(index: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(index.view("<u4")[::-1]).view(np.uint8)


def group_set(places: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """The places of the first group, two bits each."""
    return lambda index: np.concatenate([index[:1] & 0xF0 | places[0] | places[1] << 2, index[1:]]).astype(np.uint8)


ORDER = "must be in ascending order"
PLACES = "and in ascending order"
PADDING = "the padding after the index must be zero"

INDEX_LIES: list[tuple[str, Callable[[np.ndarray], np.ndarray], str]] = [
    ("bitmask.weight", lambda index: with_bit(index, first(index, 1), 0), "the index does not keep the 32 blocks"),
    ("bitmask.weight", lambda index: with_bit(index, first(index, 0), 1), "the index does not keep the 32 blocks"),
    ("bitmask.weight", lambda index: np.zeros_like(index), "the index does not keep the 32 blocks"),
    ("bitmask.weight", lambda index: with_bit(index, 63, 1), PADDING),
    ("bitmask.weight", moved_bit, "is damaged (its sha256 does not match)"),
    ("blocks.weight", lambda index: with_bit(index, first(index, 1), 0), "the index does not keep the 16 blocks"),
    ("blocks.weight", lambda index: with_bit(index, first(index, 0), 1), "the index does not keep the 16 blocks"),
    ("blocks.weight", lambda index: with_bit(index, 32, 1), PADDING),
    ("blocks.weight", lambda index: with_bit(index, 63, 1), PADDING),
    ("blocks.weight", moved_bit, "is damaged"),
    ("channels.weight", lambda index: with_bit(index, 8, 1), PADDING),
    ("list.weight", turned, ORDER),
    ("list.weight", numbers_changed(at0=575, at5=0), ORDER),
    ("list.weight", numbers_changed(at0=0, at1=0), ORDER),
    ("list.weight", numbers_changed(at5=576), "the index does not keep the 6 blocks"),
    ("list.weight", numbers_changed(at5=(1 << 32) - 1), "the index does not keep the 6 blocks"),
    ("list.weight", numbers_changed(at0=(1 << 32) - 1), ORDER),
    ("list.weight", numbers_changed(at5=575), "is damaged"),
    ("listed.weight", numbers_changed(at3=1), PADDING),
    ("listed.weight", numbers_changed(at0=256), ORDER),
    ("groups.weight", group_set((1, 0)), PLACES),
    ("groups.weight", group_set((2, 2)), PLACES),
    ("groups.weight", group_set((0, 0)), PLACES),
    ("odd.weight", lambda index: with_bit(index, 63, 1), PADDING),
    ("odd.weight", lambda index: packed(np.concatenate([[0, 0, 0, 1, 0, 1], bits_in(index)[6:]])), PLACES),
    ("odd.weight", lambda index: packed(np.concatenate([[0, 0, 0, 1, 1, 1], bits_in(index)[6:]])), PLACES),
]  # fmt: skip


@pytest.mark.parametrize(("name", "lie", "message"), numbered(INDEX_LIES))
def test_an_index_that_lies_is_refused(
    name: str, lie: Callable[[np.ndarray], np.ndarray], message: str, tmp_path: Path
) -> None:
    folder = artifact(tmp_path / "saved", (name,))
    index = stored(folder, f"{name}#index")
    overwritten(folder, f"{name}#index", index)
    assert Artifact(folder)[name]
    overwritten(folder, f"{name}#index", lie(index))
    opened = Artifact(folder)
    for read_it in (opened.__getitem__, opened.read_packed):
        with pytest.raises(ArtifactError, match=re.escape(message)) as caught:
            read_it(name)
        assert f"tensor '{name}'" in str(caught.value)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        verify(folder)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        convert(folder, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_values_that_are_changed_are_found(folder: Path) -> None:
    values = stored(folder, f"{NAMES[0]}#values")
    values[3] ^= 1
    overwritten(folder, f"{NAMES[0]}#values", values)
    with pytest.raises(ArtifactError, match=r"tensor 'groups.weight' is damaged \(its sha256 does not match\)"):
        Artifact(folder)[NAMES[0]]
    assert Artifact(folder)[NAMES[1]]


def test_a_block_that_a_list_cannot_number_is_refused(folder: Path) -> None:
    """A tensor of 2^32 blocks is less than 1024 times as large as a list that is long enough."""
    kept = 1 << 22

    def enlarged(data: dict[str, Any]) -> None:
        data["tensors"][NAMES[2]] |= {"shape": [1 << 16, 1 << 16], "zeros": 0}
        data["tensors"][NAMES[2]]["packing"]["kept"] = kept

    forged(folder, enlarged)
    with pytest.raises(ArtifactError, match="a list can number at most 4,294,967,295 blocks, found 4,294,967,296"):
        Artifact(folder)


# A model that is filled: the same bits as before after any error.


def a_model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    return model


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: held.detach().numpy().tobytes() for name, held in model.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: put(data, "tensors/2.bias/sha256", "0" * 64), "tensor '2.bias' is damaged"),
        (lambda data: put(data, "tensors/2.weight/sha256", "0" * 64), "tensor '2.weight' is damaged"),
        (lambda data: put(data, "tensors/2.bias/dtype", "I32"), "tensor '2.bias' must be I32 [4], found F32 [4]"),
        (lambda data: put(data, "aliases", {"2.other": "2.bias"}), "has '2.other', which the model does not have"),
        (lambda data: put(data, "tensors/0.weight/shape", [16, 8]), "has shape [16, 8], but [8, 16] in the model"),
    ],
)
def test_a_model_is_as_it_was_after_a_lie(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    saved, model = a_model(0), a_model(1)
    save(saved, tmp_path / "saved")
    before = bits(model)
    forged(tmp_path / "saved", change)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        load(tmp_path / "saved", model)
    assert bits(model) == before


def test_a_model_is_as_it_was_after_damage_to_the_last_byte(tmp_path: Path) -> None:
    saved, model = a_model(0), a_model(1)
    save(saved, tmp_path / "saved")
    path = tmp_path / "saved" / SHARD
    header, data = header_of(path)
    path.write_bytes(shard_of(header, data))
    load(tmp_path / "saved", model)
    assert bits(model) == bits(saved)
    model = a_model(1)
    before = bits(model)
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="is damaged"):
        load(tmp_path / "saved", model)
    assert bits(model) == before


def test_names_in_a_shard_are_those_of_the_manifest(folder: Path) -> None:
    reheaded(folder, lambda header: header.update(other=header.pop(NAMES[5])))
    with pytest.raises(ArtifactError, match=r"tensor 'norm.bias' must be F32 \[5\], found nothing"):
        Artifact(folder)
