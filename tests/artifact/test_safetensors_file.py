"""Safetensors files that lie, by themselves and as the shard of an artifact: each is refused when it is opened."""

import json
import re
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from artifact.forgery import SHARD, artifact, header_of, reheaded, replace_shard, shard_of
from secateur.artifact import Artifact, convert, inspect, verify
from secateur.artifact.safetensors_file import TensorFile
from secateur.errors import ArtifactError, SecateurError

BIG = 10**30


def entry(shape: Any = (2, 2), offsets: Any = (0, 4), dtype: Any = "U8", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


GOOD = entry()
DATA = bytes(range(4))

LENGTHS = [
    (b"", "the header must have 2 to 2 bytes, found 0"),
    (b"\x08\0\0", "the header must have"),
    (b"\0" * 8 + DATA, "the header must have 2 to 4 bytes, found 0"),
    (b"\x01" + b"\0" * 7 + b"{}", "found 1."),
    (b"\x03" + b"\0" * 7 + b"{}", "the header must have 2 to 2 bytes, found 3"),
    (b"\xff" * 8 + b"{}", "found 18,446,744,073,709,551,615"),
    (b"\0" * 7 + b"\x80" + b"{}", "found 9,223,372,036,854,775,808"),
    (shard_of({"a": GOOD}, DATA)[:40], "the header must have 2 to 32 bytes"),
    (shard_of({"a": GOOD}, DATA)[:-1], "must have 4 bytes in total, found 3. Is the file complete?"),
    (shard_of({"a": GOOD}, DATA + b"\0"), "must have 4 bytes in total, found 5"),
    (shard_of({}, DATA), "must have 0 bytes in total, found 4"),
]

TEXTS = [
    (b"{}{}", "is not valid JSON"),
    (b"\0\0", "is not valid JSON"),
    (b"\xff\xfe{}", "is not valid JSON"),
    (b'{"a": "\xff"}', "is not valid JSON"),
    (b"[]", "must be a JSON object, found list"),
    (b"null", "must be a JSON object, found NoneType"),
    (b'"ab"', "must be a JSON object, found str"),
    (b'{"a": NaN}', "NaN is not a JSON number"),
    (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
    (b'{"a": 1, "a": 1}', "a key appears twice"),
    (b'{"__metadata__": {}, "__metadata__": {}}', "a key appears twice"),
    (b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}', "a key appears twice"),
    (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    (b'{"a": ' * 200_000 + b"}" * 200_000, "nested too deeply"),
    (b'{"a": ' + b"9" * 10_000 + b"}", "is not valid JSON"),
]

ENTRIES: list[tuple[Any, str]] = [
    (7, "tensor 'a' must have dtype, shape and data_offsets"),
    (None, "must have dtype, shape and data_offsets"),
    (["U8", [4], [0, 4]], "must have dtype, shape and data_offsets"),
    ({"dtype": "U8", "shape": [4]}, "must have dtype, shape and data_offsets"),
    (entry(more=1), "must have dtype, shape and data_offsets"),
    (entry(dtype="BF61"), "has dtype 'BF61', which is unknown. Did you mean 'BF16'?"),
    (entry(dtype="u8"), "has dtype 'u8', which is unknown"),
    (entry(dtype=8), "has dtype 8, which is unknown"),
    (entry(dtype=["U8"]), "has dtype ['U8'], which is unknown"),
    (entry(dtype={}), "has dtype {}, which is unknown"),
    (entry(dtype=None), "has dtype None, which is unknown"),
    (entry(dtype=nested(200)), "which is unknown"),
    (entry(dtype="U8" * 10**6), "which is unknown"),
    (entry(4), "has the shape 4, which must be a list of sizes"),
    (entry("4"), "has the shape '4', which must be a list of sizes"),
    (entry([-4]), "has the shape [-4], which must be a list of sizes"),
    (entry([-2, -2]), "has the shape [-2, -2], which must be a list of sizes"),
    (entry([4.0]), "has the shape [4.0], which must be a list of sizes"),
    (entry([True, 4]), "has the shape [True, 4], which must be a list of sizes"),
    (entry(["4"]), "has the shape ['4'], which must be a list of sizes"),
    (entry([[4]]), "has the shape [[4]], which must be a list of sizes"),
    (entry([None]), "has the shape [None], which must be a list of sizes"),
    (entry([BIG]), f"has the shape [{BIG}], which must be a list of sizes"),
    (entry([1 << 63, 0], [0, 0]), "which must be a list of sizes"),
    (entry(nested(200)), "which must be a list of sizes"),
    (entry([1] * 10_000), "which must be a list of sizes"),
    (entry([1] * 65), "which must be a list of sizes"),
    (entry([(1 << 63) - 1] * 64), "found 4"),
    (entry([1 << 40]), "needs 1,099,511,627,776 bytes for U8 [1099511627776], found 4"),
    (entry([1 << 32, 1 << 32], [0, 0]), "needs 18,446,744,073,709,551,616 bytes"),
    (entry([4], [0, 1 << 40]), "needs 4 bytes for U8 [4], found 1,099,511,627,776"),
    (entry([1 << 40], [0, 1 << 40]), "must have 1,099,511,627,776 bytes in total, found 4"),
    (entry([3]), "needs 3 bytes for U8 [3], found 4"),
    (entry([2, 2], dtype="F32"), "needs 16 bytes for F32 [2, 2], found 4"),
    (entry(offsets=[4, 0]), "needs 4 bytes for U8 [2, 2], found -4"),
    (entry(offsets=[0]), "has data_offsets [0], which must be two offsets"),
    (entry(offsets=[0, 2, 4]), "has data_offsets [0, 2, 4], which must be two offsets"),
    (entry(offsets=[-4, 0]), "has data_offsets [-4, 0], which must be two offsets"),
    (entry(offsets=[0.0, 4.0]), "has data_offsets [0.0, 4.0], which must be two offsets"),
    (entry(offsets=[False, 4]), "has data_offsets [False, 4], which must be two offsets"),
    (entry(offsets="04"), "has data_offsets '04', which must be two offsets"),
    (entry(offsets=[BIG, BIG + 4]), "which must be two offsets"),
    (entry(offsets=[1, 5]), "tensor 'a' leaves a gap before it: it begins at byte 1, and 0 is next"),
    (entry(offsets=[4, 8]), "leaves a gap before it: it begins at byte 4, and 0 is next"),
    (entry(offsets=[(1 << 63) - 5, (1 << 63) - 1]), "leaves a gap before it"),
]

HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"a": GOOD, "b": GOOD}, "tensor 'b' overlaps another: it begins at byte 0, and 4 is next"),
    ({"a": entry([3], [0, 3]), "b": entry([2], [2, 4])}, "tensor 'b' overlaps another"),
    ({"a": GOOD, "b": entry([1], [1, 2])}, "tensor 'b' overlaps another"),
    ({"a": GOOD, "b": entry([0], [2, 2])}, "tensor 'b' overlaps another"),
    ({"a": entry([1], [0, 1]), "b": entry([1], [3, 4])}, "tensor 'b' leaves a gap before it"),
    ({"a": GOOD, "b": entry([0], [9, 9])}, "tensor 'b' leaves a gap before it"),
    ({"a": GOOD, "__metadata__": 1}, "'__metadata__' must map names to strings"),
    ({"a": GOOD, "__metadata__": None}, "'__metadata__' must map names to strings"),
    ({"a": GOOD, "__metadata__": ["a"]}, "'__metadata__' must map names to strings"),
    ({"a": GOOD, "__metadata__": {"a": 1}}, "'__metadata__' must map names to strings"),
    ({"a": GOOD, "__metadata__": {"a": {"b": "c"}}}, "'__metadata__' must map names to strings"),
    ({"a": GOOD, "__metadata__": {"a": nested(200)}}, "'__metadata__' must map names to strings"),
    ({"a\n": GOOD}, r"tensor 'a\n' has a name that cannot be printed"),
    ({"a\0": GOOD}, r"tensor 'a\x00' has a name that cannot be printed"),
    ({"\x1b[2J": GOOD}, r"tensor '\x1b[2J' has a name that cannot be printed"),
    ({"\ud800": GOOD}, r"tensor '\ud800' has a name that cannot be printed"),
    ({"\u202eevil": GOOD}, r"tensor '\u202eevil' has a name that cannot be printed"),
    ({"\x85" * 10**6: GOOD}, "has a name that cannot be printed"),
]

WHOLE = [
    *LENGTHS,
    *((shard_of(text, DATA), message) for text, message in TEXTS),
    *((shard_of({"a": lie}, DATA), message) for lie, message in ENTRIES),
    *((shard_of(header, DATA), message) for header, message in HEADERS),
]

NUMBERED = [pytest.param(whole, message, id=f"{place}") for place, (whole, message) in enumerate(WHOLE)]


@pytest.mark.parametrize(("whole", "message"), NUMBERED)
def test_a_file_that_lies_is_refused_when_it_is_opened(whole: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(whole)
    before = sorted(tmp_path.iterdir())
    for use in (TensorFile, verify, inspect, lambda found: convert(found, tmp_path / "target")):
        with pytest.raises(ArtifactError, match=re.escape(message)) as caught:
            use(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 2000
        assert str(caught.value).isprintable()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("whole", "message"), NUMBERED)
def test_a_shard_that_lies_is_refused_when_the_artifact_is_opened(whole: bytes, message: str, tmp_path: Path) -> None:
    """Though the manifest names its size."""
    folder = artifact(tmp_path / "saved", ("dense.weight",))
    replace_shard(folder, whole)
    with pytest.raises(ArtifactError, match=re.escape(message)) as caught:
        Artifact(folder)
    assert SHARD in str(caught.value)


@pytest.mark.parametrize("depth", range(300, 1100, 10))
def test_no_depth_of_nesting_is_too_deep_for_the_error(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for place in ("dtype", "shape", "data_offsets"):
        text = json.dumps({"a": GOOD | {place: 0}}).replace(f'"{place}": 0', f'"{place}": {"[" * depth}{"]" * depth}')
        path.write_bytes(shard_of(text.encode(), DATA))
        with pytest.raises(ArtifactError, match=r"nested too deeply|which is unknown|which must be"):
            TensorFile(path)


@pytest.mark.parametrize("shape", [[1 << 62, 0], [0, 1 << 62], [0] * 64, [(1 << 63) - 1] * 63 + [0]])
def test_absurd_shapes_of_nothing_are_empty_or_an_error(shape: list[int], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(shard_of({"a": entry(shape, [0, 0], "F32")}, b""))
    for use in (TensorFile(path).read, lambda _: inspect(path), lambda _: verify(path, pattern="2:4")):
        with suppress(SecateurError):
            use("a")


def test_many_axes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(shard_of({"a": entry([1] * 60 + [2, 2], [0, 8], "F16")}, bytes(8)))
    assert verify(path).tensors[0].zeros == 4
    convert(path, tmp_path / "target")
    assert verify(tmp_path / "target").tensors[0].shape == (1,) * 60 + (2, 2)


def test_a_lying_header_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    lies = [b"\xff" * 5 + b"\0" * 3 + b"{}", shard_of({"a": entry([1 << 40], [0, 1 << 40])}, DATA)]
    for whole in lies:
        path.write_bytes(whole)
        tracemalloc.start()
        with pytest.raises(ArtifactError):
            verify(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def moved(header: dict[str, Any], one: str, other: str) -> None:
    header[one]["data_offsets"], header[other]["data_offsets"] = (
        header[other]["data_offsets"],
        header[one]["data_offsets"],
    )


def test_parts_that_change_places_are_found_when_they_are_read(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "saved", ("blocks.weight", "groups.weight"))
    reheaded(folder, lambda header: moved(header, "blocks.weight#values", "groups.weight#values"))
    opened = Artifact(folder)
    for name in opened:
        with pytest.raises(ArtifactError, match=f"'{name}' is damaged" if name != "alias" else "is damaged"):
            opened[name]


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"dtype": "I8"}, "tensor 'dense.weight' must be F8_E4M3 [3, 5], found I8 [3, 5]"),
        ({"shape": [5, 3]}, "tensor 'dense.weight' must be F8_E4M3 [3, 5], found F8_E4M3 [5, 3]"),
        ({"shape": [15]}, "tensor 'dense.weight' must be F8_E4M3 [3, 5], found F8_E4M3 [15]"),
    ],
)
def test_a_shard_and_the_manifest_agree(lie: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = artifact(tmp_path / "saved", ("dense.weight",))
    reheaded(folder, lambda header: header["dense.weight"].update(lie))
    with pytest.raises(ArtifactError, match=re.escape(message)):
        Artifact(folder)


def test_a_tensor_too_much_or_too_little_is_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "saved", ("dense.weight",))
    _, data = header_of(folder / SHARD)
    reheaded(folder, lambda header: header.update(more=entry([1], [15, 16])), data + b"\0")
    with pytest.raises(ArtifactError, match="'more' do not belong to any tensor"):
        Artifact(folder)
    replace_shard(folder, shard_of({}, b""))
    with pytest.raises(ArtifactError, match=r"tensor 'dense.weight' must be F8_E4M3 \[3, 5\], found nothing"):
        Artifact(folder)
