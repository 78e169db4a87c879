"""From tensors to an artifact: each is looked at to choose its packing, and packed when its turn comes."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from secateur._array import count_true
from secateur._files import as_path, digest_file
from secateur._folders import replace_folder
from secateur._huggingface.companions import check_size
from secateur._huggingface.folders import INDEX_FILE, WEIGHTS_FILE, format_index, name_shard
from secateur._manifest_file import MANIFEST
from secateur._memory import explain_out_of_memory
from secateur._wording import format_value
from secateur.artifact.choice import choose
from secateur.artifact.dtypes import DTYPES, Bits
from secateur.artifact.manifest import (
    FILE_NAME,
    Claim,
    FileEntry,
    Layout,
    Manifest,
    TensorEntry,
    explain_invalid,
    packing_of,
)
from secateur.artifact.proof import violation
from secateur.artifact.safetensors_file import METADATA, write_tensor_file
from secateur.artifact.source import Source, SourceTensor
from secateur.errors import ArtifactError, SecateurError
from secateur.patterns.recognition import NonzeroMask

__all__ = ["SHARD_BYTES", "digest", "examined", "names_of_artifact", "write"]

SHARD_BYTES = 4 << 30
"""Bytes of tensors in one shard, unless a single tensor has more."""

ALIGNMENT = 8
"""Bytes of which a tensor must have a multiple for the next to begin at one."""


def write(
    source: Source,
    path: str | Path,
    *,
    claims: Mapping[str, Claim] | None = None,
    configs: Sequence[Mapping[str, Any]] = (),
    dense: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Write an artifact, all or nothing.

    Args:
        source: The tensors, and what belongs to them.
        path: The folder; new, empty, or an artifact, which is replaced.
        claims: Layer → what pruning did to its weight.
        configs: The configurations that made it.
        dense: Store every tensor as it is, in files that transformers reads.
        shard_bytes: Bytes of tensors in one shard.

    Raises:
        ArtifactError: The folder is something else or cannot be written, or a weight is not what a claim says.
    """
    if shard_bytes < 1:
        raise ArtifactError(f"shard_bytes must be at least 1, found {shard_bytes}.")
    for name in (*source.tensors, *source.aliases):
        if not name.isprintable() or name == METADATA:
            raise ArtifactError(f"tensor {format_value(name)}: a file can have no such name. Rename it.")
    with replace_folder(as_path(path), names_of_artifact) as folder:
        _write_companions(source, folder)
        entries = {
            name: examined(
                name, tensor, None if tensor.layer is None else (claims or {}).get(tensor.layer), dense=dense
            )
            for name, tensor in source.tensors.items()
        }
        shards = _shards(entries, shard_bytes, dense=dense)
        places = {name: file for file, names in shards.items() for name in names}
        tensors = {name: entry.model_copy(update={"file": places[name]}) for name, entry in entries.items()}
        for file, names in shards.items():
            _write_shard(folder / file, {name: (tensors[name], source.tensors[name]) for name in names})
        if dense and len(shards) > 1:
            write_text(folder / INDEX_FILE, _index(tensors))
        with explain_invalid("the model"):
            manifest = Manifest(
                written_by=_program(),
                model=source.model,
                configs=tuple(map(dict, configs)),
                shards={file: (folder / file).stat().st_size for file in shards},
                files=_files(folder, shards),
                tensors=tensors,
                aliases=dict(source.aliases),
            )
        write_text(folder / MANIFEST, manifest.text())
    return manifest


def examined(name: str, tensor: SourceTensor, claim: Claim | None = None, *, dense: bool = False) -> TensorEntry:
    """What a manifest says of a tensor, but for the shard that it will be in.

    Raises:
        ArtifactError: The tensor is not what a claim says, no manifest can describe it, or memory does not suffice.
    """
    what = f"tensor {format_value(name)}"
    with explain_out_of_memory(what, math.prod(tensor.shape) * DTYPES[tensor.dtype].size), explain_invalid(what):
        return _examined(tensor, claim, dense=dense)


def _examined(tensor: SourceTensor, claim: Claim | None, *, dense: bool) -> TensorEntry:
    bits, dtype, view = tensor.read(), DTYPES[tensor.dtype], tensor.view
    alive, stored = _count_nonzero(tensor, bits, claim), count_true(bits)
    pattern, packing = None if claim is None else claim.pattern, None
    if view is not None and dtype.is_float:
        # What is stored must have the same bits again, so -0.0 counts as a number here.
        choice = choose(NonzeroMask(view, bits != 0), dtype.size, pattern)
        packing = None if dense else choice.packing
        pattern = pattern or choice.pattern
    return TensorEntry(
        file="",
        layer=tensor.layer if tensor.is_prunable or claim is not None else None,
        dtype=tensor.dtype,
        shape=tensor.shape,
        layout=None if view is None else Layout.of(view),
        packing=packing_of(packing),
        pattern=pattern,
        pruned=claim,
        zeros=bits.size - alive,
        negative_zeros=stored - alive,
        sha256=digest(bits),
    )


def _count_nonzero(tensor: SourceTensor, bits: Bits, claim: Claim | None) -> int:
    """How many numbers are not zero, once it is proved that the zeros are those of the claim."""
    dtype, view = DTYPES[tensor.dtype], tensor.view
    nonzero = dtype.nonzero(bits)
    if claim is not None and view is None:
        raise ArtifactError(
            f"layer {tensor.layer!r}: was pruned to {claim.pattern!r}, but has no channels that are known."
        )
    if claim is not None and view is not None and dtype.is_float:
        problem = violation(claim.pattern, view, nonzero, claim)
        if problem:
            raise ArtifactError(
                f"layer {tensor.layer!r}: was pruned to {claim.pattern!r}, but {problem}. Save the model as pruning "
                f"left it, or without report."
            )
    return count_true(nonzero)


def digest(bits: Bits) -> str:
    """SHA-256 of a dense tensor's bytes."""
    return hashlib.sha256(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data).hexdigest()


def _write_companions(source: Source, folder: Path) -> None:
    try:
        source.write_files(folder)
    except (SecateurError, OSError, MemoryError):
        raise
    # Configurations and tokenizers are other people's code, with errors of any type; on a full disk too.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(
            f"{folder}: the configuration or tokenizer of the model cannot be written ({first_line})."
        ) from error
    for name in _names_in(folder):
        check_size(folder / name, (folder / name).stat().st_size)
        if not FILE_NAME.fullmatch(name):
            raise ArtifactError(
                f"file {format_value(name)}: an artifact has file names of letters, digits, '.', '_' and '-' only. "
                "Rename it."
            )


def names_of_artifact(folder: Path) -> set[str] | None:
    """Names of an artifact's own files; ``None``: it is no artifact."""
    try:
        manifest = Manifest.read(folder)
    except ArtifactError:
        return None
    return {MANIFEST, *manifest.shards, *manifest.files}


def write_text(path: Path, text: str) -> None:
    """Write a small file, and have it on the disk."""
    with path.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _shards(entries: Mapping[str, TensorEntry], limit: int, *, dense: bool) -> dict[str, list[str]]:
    """File → names of the tensors in it; every file is full before the next begins."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, entry in entries.items():
        if parts[-1] and filled + entry.stored_bytes > limit:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += entry.stored_bytes
    if dense and len(parts) == 1:
        return {WEIGHTS_FILE: parts[0]}
    stem = "model" if dense else "packed"
    return {name_shard(number, len(parts), stem): names for number, names in enumerate(parts, start=1)}


def _write_shard(path: Path, tensors: Mapping[str, tuple[TensorEntry, SourceTensor]]) -> None:
    # What would put the next tensor at an odd place comes last, the widest numbers first.
    order = sorted(tensors, key=lambda name: _alignment(tensors[name][0]))
    layout = {part: stored for name in order for part, stored in tensors[name][0].stored(name).items()}
    if len(layout) < sum(len(entry.stored(name)) for name, (entry, _) in tensors.items()):
        raise ArtifactError("tensors whose names end with '#values' or '#index' clash with packed ones. Rename them.")
    write_tensor_file(path, layout, lambda: _stored(tensors[name] for name in order))


def _alignment(entry: TensorEntry) -> tuple[bool, int]:
    is_odd = entry.stored_bytes % ALIGNMENT > 0
    return is_odd, -DTYPES[entry.dtype].size if is_odd else 0


def _stored(tensors: Iterable[tuple[TensorEntry, SourceTensor]]) -> Iterator[Bits]:
    for entry, tensor in tensors:
        yield from _parts(entry, tensor)


def _parts(entry: TensorEntry, tensor: SourceTensor) -> tuple[Bits, ...]:
    """What a shard holds of a tensor."""
    with explain_out_of_memory(f"layer {entry.layer!r}: its weight cannot be packed", entry.dense_bytes):
        bits, packer = tensor.read(), entry.packer
        if packer is None or entry.view is None:
            return (bits,)
        return packer.pack(bits, entry.view, NonzeroMask(entry.view, bits != 0).reduce_blocks(packer.block))


def _index(tensors: Mapping[str, TensorEntry]) -> str:
    total = sum(tensor.dense_bytes for tensor in tensors.values())
    return format_index({name: tensor.file for name, tensor in tensors.items()}, total)


def _files(folder: Path, shards: Mapping[str, Sequence[str]]) -> dict[str, FileEntry]:
    digests = {name: digest_file(folder / name) for name in _names_in(folder) if name not in shards}
    return {name: FileEntry(size=digest.size, sha256=digest.sha256) for name, digest in digests.items()}


def _names_in(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]


def _program() -> str:
    try:
        return f"secateur {version('secateur')}"
    except PackageNotFoundError:
        return "secateur"
