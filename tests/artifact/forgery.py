"""Small artifacts of every kind, and the means to forge them with digests that are right."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur._manifest_file import MANIFEST
from secateur.artifact import Artifact, RawTensor, verify
from secateur.artifact.dtypes import DTYPES, Bits
from secateur.artifact.manifest import Claim
from secateur.artifact.pytorch import to_torch
from secateur.artifact.source import Source, SourceTensor, guess_view
from secateur.artifact.writer import write

SHARD = "packed-00001-of-00001.safetensors"
"""The only shard of a small artifact."""

COMPANION = "config.json"

Content = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Name → type, shape and bytes."""


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Bits:
    """Bit patterns without a zero among them."""
    bits = DTYPES[dtype].bits
    limits = np.iinfo(bits)
    return np.random.default_rng(seed).integers(1, limits.max // 2, shape, bits)


def one_by_one(shape: tuple[int, int], dtype: str, share: float, seed: int = 0) -> Bits:
    """Single zeros, as many as a share says, in no pattern."""
    bits = numbers(shape, dtype, seed)
    pruned = np.random.default_rng(seed + 1).permutation(bits.size)[: int(share * bits.size)]
    bits.reshape(-1)[pruned] = 0
    return bits


def in_blocks(shape: tuple[int, int], block: tuple[int, int], dtype: str, share: float, seed: int = 0) -> Bits:
    """Zeros in blocks."""
    grid = shape[0] // block[0], shape[1] // block[1]
    keep = one_by_one(grid, "U8", share, seed) != 0
    return numbers(shape, dtype, seed) * np.kron(keep, np.ones(block, np.bool_)).astype(DTYPES[dtype].bits)


def in_groups(shape: tuple[int, int], count: int, group: int, dtype: str, seed: int = 0) -> Bits:
    """`count` of every `group` neighbours stay."""
    order = np.random.default_rng(seed).random((shape[0] * shape[1] // group, group)).argsort(axis=1)
    return numbers(shape, dtype, seed) * (order < count).reshape(shape).astype(DTYPES[dtype].bits)


TENSORS: dict[str, tuple[str, Bits]] = {
    "bitmask.weight": ("F32", one_by_one((7, 9), "F32", 0.5)),
    "list.weight": ("F32", one_by_one((24, 24), "F32", 0.99)),
    "blocks.weight": ("BF16", in_blocks((16, 8), (4, 1), "BF16", 0.5)),
    "listed.weight": ("F16", in_blocks((64, 64), (4, 4), "F16", 0.99)),
    "channels.weight": ("F32", in_blocks((8, 6), (1, 6), "F32", 0.5)),
    "groups.weight": ("BF16", in_groups((8, 16), 2, 4, "BF16")),
    "odd.weight": ("F32", in_groups((3, 10), 2, 5, "F32")),
    "dense.weight": ("F8_E4M3", numbers((3, 5), "F8_E4M3")),
    "norm.bias": ("F32", numbers((5,), "F32")),
    "counter": ("I64", numbers((), "I64")),
    "flags": ("BOOL", np.array([0, 1, 1], "u1")),
    "empty": ("F32", numbers((0, 3), "F32")),
}
"""A tensor of each packing, and of types and shapes that are stored dense."""

CLAIMS = {
    "groups": Claim(pattern="2:4", units=128, pruned_units=64),
    "blocks": Claim(pattern="4x1", units=32, pruned_units=16),
    "odd": Claim(pattern="2:5", units=30, pruned_units=18),
}


def source(tensors: Mapping[str, tuple[str, Bits]] | None = None, companion: str = "{}\n") -> Source:
    """Tensors, an alias and a file beside them."""
    tensors = TENSORS if tensors is None else tensors
    first = next(iter(tensors))
    return Source(
        tensors={name: _tensor(name, dtype, bits) for name, (dtype, bits) in tensors.items()},
        aliases={"alias": first},
        write_files=lambda folder: (folder / COMPANION).write_text(companion),
    )


def _tensor(name: str, dtype: str, bits: Bits) -> SourceTensor:
    view = guess_view(bits.shape) if DTYPES[dtype].is_float else None
    layer = name.removesuffix(".weight") if view is not None else None
    return SourceTensor(
        dtype=dtype,
        shape=bits.shape,
        read=partial(np.copy, bits),
        view=view,
        layer=layer,
        is_prunable=layer is not None,
    )


def artifact(folder: Path, names: tuple[str, ...] = tuple(TENSORS), *, claimed: bool = True, **options: Any) -> Path:
    """An artifact of some of `TENSORS`."""
    chosen = {name: TENSORS[name] for name in names}
    claims = {layer: claim for layer, claim in CLAIMS.items() if claimed and f"{layer}.weight" in chosen}
    write(replace(source(chosen), claims=claims), folder, **options)
    return folder


def content(folder: Path) -> Content:
    """Everything that an artifact says it holds, proved."""
    opened = Artifact(folder)
    verify(folder)
    return {name: (tensor.dtype, tensor.shape, tensor.bits.tobytes()) for name, tensor in opened.items()}


def sealed(data: Mapping[str, Any]) -> str:
    """A manifest with its own digest made right."""
    blank = "0" * 64
    text = json.dumps({"sha256": blank, **{key: value for key, value in data.items() if key != "sha256"}}, indent=1)
    return text.replace(blank, hashlib.sha256(text.encode()).hexdigest(), 1)


def forged(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and make its own digest right."""
    path = folder / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(sealed(data))


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and data."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def shard_of(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """A safetensors file, of which the header is padded as those that are written here."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b"" if isinstance(header, bytes) else b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def reheaded(folder: Path, change: Callable[[dict[str, Any]], object], data: bytes | None = None) -> None:
    """Change the header of the shard, and make the size in the manifest and its digest right."""
    header, found = header_of(folder / SHARD)
    change(header)
    replace_shard(folder, shard_of(header, found if data is None else data))


def replace_shard(folder: Path, whole: bytes) -> None:
    """Another shard, of which the manifest says the right size."""
    (folder / SHARD).write_bytes(whole)
    forged(folder, lambda data: data["shards"].update({SHARD: len(whole)}))


def stored(folder: Path, part: str) -> npt.NDArray[np.uint8]:
    """The bytes of one part of the shard."""
    header, data = header_of(folder / SHARD)
    start, stop = header[part]["data_offsets"]
    return np.frombuffer(data[start:stop], np.uint8).copy()


def overwritten(folder: Path, part: str, new: npt.NDArray[Any]) -> None:
    """Other bytes in the place of one part of the shard."""
    header, data = header_of(folder / SHARD)
    start, stop = header[part]["data_offsets"]
    raw = new.tobytes()
    assert len(raw) == stop - start
    (folder / SHARD).write_bytes(shard_of(header, data[:start] + raw + data[stop:]))


def model_of(held: Content) -> nn.Module:
    """A module that holds such tensors, with values that are none of theirs."""
    model, made = nn.Module(), dict[bytes, torch.Tensor]()
    for name, (dtype, shape, raw) in held.items():
        *parts, last = name.split(".")
        owner = model
        for part in parts:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        other = np.frombuffer(raw, np.uint8) ^ (dtype != "BOOL")
        tensor = to_torch(RawTensor(dtype, other.view(DTYPES[dtype].bits).reshape(shape)))
        owner.register_buffer(last, made.setdefault(raw, tensor))
    return model


def state_of(model: nn.Module) -> dict[str, bytes]:
    """The bytes of everything that a module saves."""
    flat = {name: held.detach().contiguous().reshape(-1) for name, held in model.state_dict().items()}
    return {name: held.view(torch.uint8).numpy().tobytes() for name, held in flat.items()}
