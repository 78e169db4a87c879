"""Random mutations of artifacts and safetensors files, with digests made right or not."""

import copy
import hashlib
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from artifact.forgery import Content, sealed, shard_of
from secateur._manifest_file import MANIFEST

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
        with suppress(IndexError):  # nothing is left to change
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


def of_other_tools(path: Path, whole: bytes, chance: random.Random) -> str:
    if chance.randrange(2):
        change = chance.choice([*BYTES, lengthened])
        path.write_bytes(change(whole, chance))
        return change.__name__
    header, data = split(whole)
    path.write_bytes(shard_of(changed_json(header, chance), data))
    return "header changed"


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
