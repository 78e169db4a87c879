"""Write artifacts in two passes over the tensors: choose the packing of each, then pack and write them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from secateur._array import count_true
from secateur._files import as_path, digest_file
from secateur._folders import replace_folder
from secateur._huggingface.companions import check_name, check_size
from secateur._huggingface.folders import INDEX_FILE, WEIGHTS_FILE, format_index, name_shard
from secateur._manifest_file import MANIFEST
from secateur._memory import explain_out_of_memory
from secateur._wording import format_value
from secateur.artifact.dtypes import DTYPES, Bits, digest_bits
from secateur.artifact.manifest import (
    AxisLayout,
    Claim,
    FileEntry,
    Manifest,
    TensorEntry,
    describe_packing,
    explain_invalid,
)
from secateur.artifact.packing_choice import choose_packing
from secateur.artifact.pattern_verification import restate_claim, verify_pattern
from secateur.artifact.safetensors_file import METADATA, write_tensor_file
from secateur.artifact.source import Source, SourceTensor
from secateur.errors import ArtifactError, SecateurError
from secateur.patterns.recognition import NonzeroMask

__all__ = ["SHARD_BYTES", "describe_tensor", "write"]

SHARD_BYTES = 4 << 30
"""Maximum bytes of tensors in one shard, unless a single tensor has more."""

ALIGNMENT = 8
"""Tensors begin at a multiple of this many bytes if possible."""


def write(
    source: Source,
    path: str | Path,
    *,
    dense: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Write an artifact completely or not at all.

    Args:
        source: The tensors, and everything else in the artifact.
        path: The folder: new, empty, or an artifact, which is replaced.
        dense: Store every tensor dense, in files that transformers can read.
        shard_bytes: Maximum bytes of tensors in one shard.

    Raises:
        ArtifactError: The folder is something else or cannot be written, or a weight does not match its claim.
    """
    if shard_bytes < 1:
        raise ArtifactError(f"shard_bytes must be at least 1, found {shard_bytes}.")
    for name in (*source.tensors, *source.aliases):
        if not name.isprintable() or name == METADATA:
            raise ArtifactError(f"tensor {format_value(name)}: this name is not allowed in a file. Rename the tensor.")
    with replace_folder(as_path(path), _list_owned_files) as folder:
        _write_companion_files(source, folder)
        _verify_converted(source)
        entries = {
            name: describe_tensor(name, tensor, source.find_claim(tensor), dense=dense)
            for name, tensor in source.tensors.items()
        }
        shards = _split_shards(entries, shard_bytes, dense=dense)
        places = {name: file for file, names in shards.items() for name in names}
        tensors = {name: entry.model_copy(update={"file": places[name]}) for name, entry in entries.items()}
        for file, names in shards.items():
            _write_shard(folder / file, {name: (tensors[name], source.tensors[name]) for name in names})
        if dense and len(shards) > 1:
            _write_text(folder / INDEX_FILE, _format_index(tensors))
        with explain_invalid("the model"):
            manifest = Manifest(
                written_by=_describe_program(),
                model=source.model,
                configs=tuple(map(dict, source.configs)),
                shards={file: (folder / file).stat().st_size for file in shards},
                files=_describe_files(folder, shards),
                tensors=tensors,
                aliases=dict(source.aliases),
                sizes=None if source.sizes is None else {name: dict(values) for name, values in source.sizes.items()},
                branches=None if source.branches is None else dict(source.branches),
                blocks=None if source.blocks is None else dict(source.blocks),
            )
        _write_text(folder / MANIFEST, manifest.to_text())
    return manifest


def _verify_converted(source: Source) -> None:
    """Verify the claims of layers that are written in another layout on their weights in the model."""
    for layer, tensor in source.converted.items():
        if layer in source.claims:
            with explain_out_of_memory(f"layer {layer!r}", math.prod(tensor.shape) * DTYPES[tensor.dtype].size):
                _count_nonzero(tensor, tensor.read(), source.claims[layer])


def describe_tensor(name: str, tensor: SourceTensor, claim: Claim | None = None, *, dense: bool = False) -> TensorEntry:
    """Describe a tensor for the manifest, except for its shard, which is chosen later.

    Args:
        name: The name of the tensor, for messages.
        tensor: The tensor.
        claim: How it was pruned.
        dense: Whether to store it dense even if a packing is smaller.

    Raises:
        ArtifactError: The tensor does not match the claim, or a manifest cannot describe it.
        OutOfMemoryError: There is not enough memory to read it.
    """
    what = f"tensor {format_value(name)}"
    with explain_out_of_memory(what, math.prod(tensor.shape) * DTYPES[tensor.dtype].size), explain_invalid(what):
        return _describe(tensor, claim, dense=dense)


def _describe(tensor: SourceTensor, claim: Claim | None, *, dense: bool) -> TensorEntry:
    bits, dtype, view = tensor.read(), DTYPES[tensor.dtype], tensor.view
    if claim is not None and tensor.origins:
        error = claim.error if len(tensor.origins) == 1 else None
        claim = None if view is None else restate_claim(claim.pattern, view, dtype.nonzero(bits), error)
    nonzero, nonzero_bits = _count_nonzero(tensor, bits, claim), count_true(bits)
    pattern, packing = None if claim is None else claim.pattern, None
    if view is not None and dtype.is_float:
        # Packing is lossless, so -0.0 counts as a nonzero number here.
        choice = choose_packing(NonzeroMask(view, bits != 0), dtype.size, pattern)
        packing = None if dense else choice.packing
        pattern = pattern or choice.pattern
    return TensorEntry(
        file="",
        layer=tensor.layer if tensor.is_prunable or claim is not None else None,
        dtype=tensor.dtype,
        shape=tensor.shape,
        layout=None if view is None else AxisLayout.from_view(view),
        packing=describe_packing(packing),
        pattern=pattern,
        pruned=claim,
        zeros=bits.size - nonzero,
        negative_zeros=nonzero_bits - nonzero,
        sha256=digest_bits(bits),
    )


def _count_nonzero(tensor: SourceTensor, bits: Bits, claim: Claim | None) -> int:
    """Count the nonzero numbers, and verify that the zeros match the claim."""
    dtype, view = DTYPES[tensor.dtype], tensor.view
    nonzero = dtype.nonzero(bits)
    if claim is not None and view is None:
        raise ArtifactError(
            f"layer {tensor.layer!r}: was pruned to {claim.pattern!r}, but the axes of its weight are unknown."
        )
    if claim is not None and view is not None and dtype.is_float:
        problem = verify_pattern(claim.pattern, view, nonzero, claim)
        if problem:
            raise ArtifactError(
                f"layer {tensor.layer!r}: was pruned to {claim.pattern!r}, but {problem}. Save the model right "
                f"after pruning, or without a report."
            )
    return count_true(nonzero)


def _write_companion_files(source: Source, folder: Path) -> None:
    try:
        source.write_files(folder)
    except (SecateurError, OSError, MemoryError):
        raise
    # Third-party code may raise any exception, for example when the disk is full.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(
            f"{folder}: cannot write the configuration or tokenizer of the model ({first_line})."
        ) from error
    for name in _list_files(folder):
        check_size(folder / name, (folder / name).stat().st_size)
        check_name(name)


def _list_owned_files(folder: Path) -> set[str] | None:
    """List the files that belong to an artifact; ``None``: the folder is not an artifact."""
    try:
        manifest = Manifest.read(folder)
    except ArtifactError:
        return None
    return {MANIFEST, *manifest.shards, *manifest.files}


def _write_text(path: Path, text: str) -> None:
    """Write a small file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _split_shards(entries: Mapping[str, TensorEntry], limit: int, *, dense: bool) -> dict[str, list[str]]:
    """Assign tensors to shards in order: shard → names of its tensors."""
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
    # Tensors that misalign the next one come last, those with the widest data type first.
    order = sorted(tensors, key=lambda name: _compute_alignment_rank(tensors[name][0]))
    arrays = {part: array for name in order for part, array in tensors[name][0].describe_arrays(name).items()}
    if len(arrays) < sum(len(entry.describe_arrays(name)) for name, (entry, _) in tensors.items()):
        raise ArtifactError(
            "names of tensors must not end with '#values' or '#index', which packed tensors use. Rename them."
        )
    write_tensor_file(path, arrays, lambda: _pack_tensors(tensors[name] for name in order))


def _compute_alignment_rank(entry: TensorEntry) -> tuple[bool, int]:
    is_odd = entry.stored_bytes % ALIGNMENT > 0
    return is_odd, -DTYPES[entry.dtype].size if is_odd else 0


def _pack_tensors(tensors: Iterable[tuple[TensorEntry, SourceTensor]]) -> Iterator[Bits]:
    for entry, tensor in tensors:
        yield from _pack_tensor(entry, tensor)


def _pack_tensor(entry: TensorEntry, tensor: SourceTensor) -> tuple[Bits, ...]:
    """Return the arrays that the shard stores for a tensor."""
    with explain_out_of_memory(f"layer {entry.layer!r}: its weight cannot be packed", entry.dense_bytes):
        bits, packer = tensor.read(), entry.packer
        if packer is None or entry.view is None:
            return (bits,)
        return packer.pack(bits, entry.view, NonzeroMask(entry.view, bits != 0).reduce_blocks(packer.block))


def _format_index(tensors: Mapping[str, TensorEntry]) -> str:
    total = sum(tensor.dense_bytes for tensor in tensors.values())
    return format_index({name: tensor.file for name, tensor in tensors.items()}, total)


def _describe_files(folder: Path, shards: Mapping[str, Sequence[str]]) -> dict[str, FileEntry]:
    digests = {name: digest_file(folder / name) for name in _list_files(folder) if name not in shards}
    return {name: FileEntry(size=digest.size, sha256=digest.sha256) for name, digest in digests.items()}


def _list_files(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]


def _describe_program() -> str:
    try:
        return f"secateur {version('secateur')}"
    except PackageNotFoundError:
        return "secateur"
