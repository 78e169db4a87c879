"""Ten thousand random mutations: each is refused with an error of this package, or changes nothing that is read."""

import copy
import hashlib
import json
import random
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from artifact.forgery import Content, artifact, content, header_of, model_of, sealed, shard_of, state_of
from secateur.artifact import convert, inspect, load, verify
from secateur.artifact.manifest import MANIFEST
from secateur.errors import SecateurError

BASES: dict[str, dict[str, Any]] = {
    "bitmask": {"names": ("bitmask.weight", "norm.bias")},
    "list": {"names": ("list.weight", "counter")},
    "blocks": {"names": ("blocks.weight", "flags")},
    "listed": {"names": ("listed.weight", "empty")},
    "channels": {"names": ("channels.weight",)},
    "groups": {"names": ("groups.weight", "dense.weight")},
    "odd": {"names": ("odd.weight", "norm.bias"), "shard_bytes": 1},
    "dense": {"names": ("groups.weight", "norm.bias"), "dense": True, "claimed": False},
}

MUTATIONS = 10_000
OF_OTHER_TOOLS = 2_000
OF_EACH_BASE = (MUTATIONS - OF_OTHER_TOOLS) // len(BASES)

SECONDS = 1
"""Of processor time for one mutation."""

TIMES_THE_FILES = 1024
"""How many times the bytes of the files are held at the most: what a packed tensor may grow by."""

CONSTANT_BYTES = 2_000_000

LONGEST_ERROR = 10_000

EVERY = 10
"""Of so many mutations, one is loaded into a model and has its memory measured, which is slow."""

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 64, 65, 255, 256, 1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 64, -(1 << 63),
    10**40, 0.0, 1.5, -0.0, 1e308, float("inf"), float("nan"), "", "a", "\0", "\n", "\ud800", "\U0010ffff", "x" * 1000,
    "../a", "/etc/passwd", [], {}, [[]], [0], [1 << 62, 4], {"": ""}, [1] * 100, "U8", "F32", "BF16", "F8_E4M3", "2:4",
    "4x1", "1:0", "dense", "blocks", "groups", "bitmap", "list", "0" * 64,
]  # fmt: skip


def seeded(text: str) -> random.Random:
    return random.Random(text)  # noqa: S311 - guards nothing


def span(whole: bytes, chance: random.Random, most: int = 40) -> tuple[int, int]:
    start = chance.randrange(len(whole) + 1)
    return start, min(len(whole), start + chance.randrange(1, most))


def flipped(whole: bytes, chance: random.Random) -> bytes:
    changed = bytearray(whole)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwritten(whole: bytes, chance: random.Random) -> bytes:
    start, stop = span(whole, chance)
    filler = chance.choice([bytes(stop - start), b"\xff" * (stop - start), chance.randbytes(stop - start)])
    return whole[:start] + filler + whole[stop:]


def inserted(whole: bytes, chance: random.Random) -> bytes:
    start, _ = span(whole, chance)
    return whole[:start] + chance.randbytes(chance.choice([1, 4, 8, 40])) + whole[start:]


def deleted(whole: bytes, chance: random.Random) -> bytes:
    start, stop = span(whole, chance)
    return whole[:start] + whole[stop:]


def truncated(whole: bytes, chance: random.Random) -> bytes:
    return whole[: chance.randrange(len(whole))]


def duplicated(whole: bytes, chance: random.Random) -> bytes:
    start, stop = span(whole, chance)
    return whole[:stop] + whole[start:]


def swapped(whole: bytes, chance: random.Random) -> bytes:
    size = chance.randrange(1, 1 + min(40, len(whole) // 2))
    one = chance.randrange(len(whole) - 2 * size + 1)
    other = chance.randrange(one + size, len(whole) - size + 1)
    middle = whole[one + size : other]
    return whole[:one] + whole[other : other + size] + middle + whole[one : one + size] + whole[other + size :]


def lengthened(whole: bytes, chance: random.Random) -> bytes:
    """Another length of the header of a shard."""
    length = chance.choice([0, 1, 2, len(whole), 1 << 32, 1 << 62, (1 << 64) - 1, chance.randrange(len(whole))])
    return length.to_bytes(8, "little") + whole[8:]


BYTES = [flipped, overwritten, inserted, deleted, truncated, duplicated, swapped]


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every container in some JSON with each of its keys."""
    found, left = [], [data]
    while left:
        holder = left.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        found += [(holder, key) for key in keys]
        left += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return found


def changed_value(data: Any, chance: random.Random) -> None:
    holder, key = chance.choice(places(data))
    value = holder[key]
    options = [copy.deepcopy(chance.choice(HOSTILE))] * 2
    if isinstance(value, int):
        options += [value + 1, value - 1, value * 2, value // 2, -value, float(value), str(value), value ^ 1 << 40]
    if isinstance(value, str) and value:
        options += [value[:-1], value + "a", value.upper(), value.replace(value[0], "b")]
    if isinstance(value, list):
        options += [value + value, value[:-1], value[::-1], [value]]
    holder[key] = chance.choice(options)


def removed(data: Any, chance: random.Random) -> None:
    holder, key = chance.choice(places(data))
    del holder[key]


def renamed(data: Any, chance: random.Random) -> None:
    holder, key = chance.choice([place for place in places(data) if isinstance(place[0], dict)])
    holder[chance.choice([f"{key}a", key[:-1], "", "sha256", "\n", *(str(other) for _, other in places(data))])] = (
        holder.pop(key)
    )


def exchanged(data: Any, chance: random.Random) -> None:
    (one, first), (other, second) = chance.choice(places(data)), chance.choice(places(data))
    one[first], other[second] = copy.deepcopy(other[second]), copy.deepcopy(one[first])


def added(data: Any, chance: random.Random) -> None:
    holder, key = chance.choice(places(data))
    value = copy.deepcopy(holder[key])
    if isinstance(holder, dict):
        holder[f"{key}{chance.choice(HOSTILE)}"] = value
    else:
        holder.insert(key, value)


JSON = [changed_value, changed_value, changed_value, removed, renamed, exchanged, added]


def changed_json(data: Any, chance: random.Random) -> Any:
    data = copy.deepcopy(data)
    for _ in range(chance.choice([1, 1, 2])):
        chance.choice(JSON)(data, chance)
    return data


class Mutated(NamedTuple):
    """What a mutation did.

    Attributes:
        how: Its name.
        files: What the folder holds now.
        is_sealed: Whether the manifest was written anew, with its digest: it may then say other things than before.
    """

    how: str
    files: dict[str, bytes]
    is_sealed: bool = False


def with_manifest(files: dict[str, bytes], data: Any) -> dict[str, bytes]:
    return files | {MANIFEST: sealed(data).encode()}


def mutated(files: dict[str, bytes], chance: random.Random) -> Mutated:
    shards = [name for name in files if name.endswith(".safetensors")]
    data = json.loads(files[MANIFEST])
    match chance.randrange(5):
        case 0:
            name = chance.choice(list(files))
            change = chance.choice(BYTES)
            return Mutated(f"{change.__name__} {name}", files | {name: change(files[name], chance)})
        case 1:
            shard, change = chance.choice(shards), chance.choice([*BYTES, lengthened])
            whole = change(files[shard], chance)
            data["shards"][shard] = len(whole)
            return Mutated(f"{change.__name__} {shard}, and its size", with_manifest(files | {shard: whole}, data))
        case 2:
            changed = json.dumps(changed_json(data, chance)).encode()
            return Mutated("manifest changed", files | {MANIFEST: changed})
        case 3:
            return Mutated("manifest changed and sealed", with_manifest(files, changed_json(data, chance)), True)
    shard = chance.choice(shards)
    header, rest = split(files[shard])
    whole = shard_of(changed_json(header, chance), rest)
    data["shards"][shard] = len(whole)
    return Mutated("header changed", with_manifest(files | {shard: whole}, data))


def split(whole: bytes) -> tuple[Any, bytes]:
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


class Folder:
    """A folder of which only what changes is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {file.name: file.read_bytes() for file in path.iterdir()}
        self.written: set[str] = set()

    def write(self, files: dict[str, bytes]) -> None:
        changed = {name for name, whole in files.items() if whole != self.files[name]}
        for name in self.written | changed:
            (self.path / name).write_bytes(files[name])
        self.written = changed


class HangError(BaseException):
    """Nothing catches it by accident."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A mutation that is waited for forever fails."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"{number} at {frame}")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def attempt(use: Callable[[], Any]) -> Any:
    """What comes of it; ``None``: it was refused, as it should be, and in time."""
    signal.alarm(30 * SECONDS)
    start = time.process_time()
    try:
        found, text = use(), "found"
    except SecateurError as error:
        found, text = None, str(error)
    assert 0 < len(text) < LONGEST_ERROR
    assert time.process_time() - start < SECONDS
    return found


def in_memory(use: Callable[[], Any], most: int) -> Any:
    tracemalloc.start()
    try:
        found = attempt(use)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= most, f"{peak:,} bytes at the most, {most:,} may be"
    return found


def check_content(found: Content | None, before: Content, mutation: Mutated) -> None:
    """What was read has the digest that was written of it, and is the same as before if nobody says otherwise."""
    if found is None:
        return
    if not mutation.is_sealed:
        assert found == before
        return
    data = json.loads(mutation.files[MANIFEST])
    digests = {entry["sha256"]: name for name, entry in data["tensors"].items()}
    original = {hashlib.sha256(raw).hexdigest(): raw for _, _, raw in before.values()}
    for name, (dtype, shape, raw) in found.items():
        entry = data["tensors"][data.get("aliases", {}).get(name, name)]
        assert (dtype, list(shape)) == (entry["dtype"], entry["shape"])
        assert hashlib.sha256(raw).hexdigest() in digests
        assert original.get(entry["sha256"], raw) == raw


def check_model(folder: Path, before: Content, mutation: Mutated) -> None:
    model = model_of(before)
    state = state_of(model)
    if attempt(lambda: load(folder, model)) is None:
        assert state_of(model) == state
    elif not mutation.is_sealed:
        assert state_of(model) == {name: raw for name, (_, _, raw) in before.items()}


def check(folder: Folder, before: Content, mutation: Mutated, *, thorough: bool) -> None:
    folder.write(mutation.files)
    most = TIMES_THE_FILES * sum(map(len, mutation.files.values())) + CONSTANT_BYTES
    attempt(lambda: inspect(folder.path))
    if thorough:
        check_content(in_memory(lambda: content(folder.path), most), before, mutation)
        check_model(folder.path, before, mutation)
    else:
        check_content(attempt(lambda: content(folder.path)), before, mutation)


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_no_mutation_of_an_artifact_is_taken_for_it(base: str, tmp_path: Path) -> None:
    folder = Folder(artifact(tmp_path / "saved", **BASES[base]))
    before = content(folder.path)
    for number in range(OF_EACH_BASE):
        mutation = mutated(folder.files, seeded(f"{base} {number}"))
        try:
            check(folder, before, mutation, thorough=number % EVERY == 0)
        except BaseException as error:
            error.add_note(f"mutation {number} of {base!r}: {mutation.how}")
            raise
    folder.write(folder.files)
    assert content(folder.path) == before


def of_other_tools(path: Path, whole: bytes, chance: random.Random) -> str:
    if chance.randrange(2):
        change = chance.choice([*BYTES, lengthened])
        path.write_bytes(change(whole, chance))
        return change.__name__
    header, data = split(whole)
    path.write_bytes(shard_of(changed_json(header, chance), data))
    return "header changed"


@pytest.mark.slow
def test_no_mutation_of_a_file_of_another_tool_does_harm(tmp_path: Path) -> None:
    """Its tensors have no digests, so those that can be read are what is in the file: as many bytes as it says."""
    path = tmp_path / "weights.safetensors"
    held = {"a": np.ones((4, 4), "f4"), "b": np.zeros((2, 8), "f2"), "c": np.arange(3), "d": np.zeros((0, 2), "f4")}
    save_file(held, path, {"format": "np"})
    whole = path.read_bytes()
    for number in range(OF_OTHER_TOOLS):
        chance = seeded(f"other {number}")
        how = of_other_tools(path, whole, chance)
        most = TIMES_THE_FILES * path.stat().st_size + CONSTANT_BYTES
        try:
            attempt(lambda: inspect(path))
            attempt(partial(verify, path, pattern=chance.choice([None, "2:4", "4x1"])))
            if number % EVERY == 0:
                in_memory(lambda: verify(path), most)
                check_converted(path, tmp_path / "target")
        except BaseException as error:
            error.add_note(f"mutation {number}: {how}")
            raise


def check_converted(path: Path, target: Path) -> None:
    if attempt(lambda: convert(path, target)) is None:
        return
    header, data = header_of(path)
    header.pop("__metadata__", None)
    found = content(target)
    assert found.keys() == header.keys()
    for name, (dtype, shape, raw) in found.items():
        start, stop = header[name]["data_offsets"]
        assert (dtype, list(shape), raw) == (header[name]["dtype"], header[name]["shape"], data[start:stop])


def test_mutations_are_enough() -> None:
    assert len(BASES) * OF_EACH_BASE + OF_OTHER_TOOLS == MUTATIONS
