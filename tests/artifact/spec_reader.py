"""A reader of artifacts that knows nothing but the page docs/artifact-format.md: plain Python, one number at a time."""

import hashlib
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

SIZES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def read(folder: Path) -> dict[str, bytes]:
    """Name → bytes of the dense tensor."""
    text = (folder / "secateur.json").read_bytes()
    manifest = json.loads(text)
    assert next(iter(manifest)) == "sha256"
    blanked = re.sub(rb"[0-9a-f]{64}", b"0" * 64, text, count=1)
    assert hashlib.sha256(blanked).hexdigest() == manifest["sha256"]
    shards = {name: shard(folder / name) for name in manifest["shards"]}
    found = {}
    for name, tensor in manifest["tensors"].items():
        found[name] = dense(name, tensor, shards[tensor["file"]])
        assert hashlib.sha256(found[name]).hexdigest() == tensor["sha256"]
    return found | {alias: found[name] for alias, name in manifest["aliases"].items()}


def shard(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    return {
        name: body[entry["data_offsets"][0] : entry["data_offsets"][1]]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def dense(name: str, tensor: dict[str, Any], stored: dict[str, bytes]) -> bytes:
    packing = tensor["packing"]
    if packing["kind"] == "dense":
        return stored[name]
    size, shape, layout = SIZES.get(tensor["dtype"], 1), tensor["shape"], tensor["layout"]
    kinds = (layout["output_axes"], layout["kernel_axes"], layout["input_axes"])
    canonical = [math.prod(shape[axis] for axis in axes) for axes in kinds]
    values, index = stored[f"{name}#values"], bits(stored[f"{name}#index"])
    numbers: dict[tuple[int, ...], bytes] = {}
    for count, place in enumerate(places(packing, index, canonical)):
        numbers[place] = values[count * size : (count + 1) * size]
    order = [axis for axes in kinds for axis in axes]
    result = bytearray()
    for where in itertools.product(*map(range, shape)):
        merged = tuple(flat([where[axis] for axis in axes], [shape[axis] for axis in axes]) for axes in kinds)
        result += numbers.get(merged, bytes(size))
    assert len(order) == len(shape)
    return bytes(result)


def places(packing: dict[str, Any], index: list[int], canonical: list[int]) -> list[tuple[int, ...]]:
    """Where in the canonical tensor each stored number belongs."""
    outputs, positions, inputs = canonical
    if packing["kind"] == "groups":
        width = (packing["group"] - 1).bit_length()
        kept = outputs * positions * inputs // packing["group"] * packing["count"]
        found = []
        for number in range(kept):
            place = sum(bit << step for step, bit in enumerate(index[number * width : (number + 1) * width]))
            start = number // packing["count"] * packing["group"] + place
            found.append((start // inputs // positions, start // inputs % positions, start % inputs))
        return found
    block = packing["block"]
    grid = [length // step for length, step in zip(canonical, block, strict=True)]
    blocks = list(itertools.product(*map(range, grid)))
    if packing["index"] == "bitmap":
        kept_blocks = [where for where, bit in zip(blocks, index, strict=False) if bit]
    else:
        listed = [
            sum(bit << step for step, bit in enumerate(index[n * 32 : n * 32 + 32])) for n in range(packing["kept"])
        ]
        kept_blocks = [blocks[number] for number in listed]
    return [
        tuple(corner * step + offset for corner, step, offset in zip(where, block, inside, strict=True))
        for where in kept_blocks
        for inside in itertools.product(*map(range, block))
    ]


def bits(data: bytes) -> list[int]:
    return [byte >> place & 1 for byte in data for place in range(8)]


def flat(where: list[int], sizes: list[int]) -> int:
    number = 0
    for place, size in zip(where, sizes, strict=True):
        number = number * size + place
    return number
