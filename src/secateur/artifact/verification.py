"""Inspect models in files and in memory, and verify models in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur._array import count_true
from secateur._files import as_path
from secateur._memory import OutOfMemoryError, explain_out_of_memory
from secateur._wording import format_value
from secateur.artifact.checkpoints import open_checkpoint
from secateur.artifact.dtypes import DTYPES, Bits
from secateur.artifact.manifest import TensorEntry, explain_invalid
from secateur.artifact.pattern_verification import (
    find_verified_pattern,
    fits_pattern,
    verify_pattern,
    verify_recognized_pattern,
)
from secateur.artifact.reader import Artifact, is_artifact_folder
from secateur.artifact.report import ArtifactReport, report_on_tensors
from secateur.artifact.source import SourceTensor
from secateur.artifact.writer import describe_tensor
from secateur.errors import ArtifactError
from secateur.frameworks import import_leaf

__all__ = ["examine", "inspect", "verify"]


def inspect(source: Any) -> ArtifactReport:
    """Report the packed size of every tensor, and the pattern of its zeros.

    Args:
        source: The folder of an artifact, a safetensors file, a transformers folder, or a model.

    Raises:
        ArtifactError: There is nothing to inspect, or it is damaged.

    Examples:
        >>> import secateur, torch
        >>> model = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
        >>> report = secateur.prune(model, {"pattern": "2:4"})
        >>> row = inspect(model).tensors[0]
        >>> row.pattern, row.packed_bytes / row.dense_bytes
        ('2:4', 0.5625)
    """
    if not isinstance(source, str | Path):
        with explain_invalid("the model"):
            tensors = import_leaf("secateur.artifact", source).make_source(source).tensors
        return report_on_tensors(type(source).__name__, _describe_tensors(tensors), is_packed=False)
    path = as_path(source)
    if not is_artifact_folder(path):
        return report_on_tensors(str(path), _describe_tensors(open_checkpoint(path).tensors), is_packed=False)
    artifact = Artifact(path)
    entries: Mapping[str, TensorEntry] = artifact.manifest.tensors
    is_packed = any(entry.packer is not None for entry in entries.values())
    if not is_packed:
        entries = _describe_tensors(artifact.make_source().tensors)
    return report_on_tensors(str(path), entries, disk_bytes=artifact.disk_bytes, is_packed=is_packed)


def verify(path: str | Path, *, pattern: str | None = None) -> ArtifactReport:
    """Read every tensor and verify that it matches the manifest.

    In an artifact, verification covers digests, counts of zeros, and the pattern and number of pruned units of every
    pruned layer. Files of other tools must be readable. Pattern classes for Intel Neural Compressor define which
    weights are pruned together; if the class is not registered, zeros are counted one by one, and the report says so.

    Args:
        path: The folder of an artifact, a safetensors file, or a transformers folder.
        pattern: A pattern that the weight of every layer that can be pruned must have, including layers that the run
            left out. Exempt are output layers, embeddings, weights that the pattern does not fit, and layers that a run
            with this pattern left dense because others were pruned more, as the manifest states. If the layers are
            unknown, all tensors with two or more axes count.

    Returns:
        The report, without problems.

    Raises:
        ArtifactError: A tensor failed; the message names all that did.

    Examples:
        >>> import secateur, tempfile, torch
        >>> model = torch.nn.Linear(64, 64)
        >>> folder = tempfile.mkdtemp()
        >>> pruned = secateur.prune(model, {"pattern": "2:4"})
        >>> report = secateur.save(model, folder, report=pruned)
        >>> verify(folder, pattern="2:4").problems
        {}
    """
    report = examine(path, pattern=pattern)
    if report.problems:
        raise ArtifactError(report.failure)
    return report


def examine(path: str | Path, *, pattern: str | None = None) -> ArtifactReport:
    """Verify a saved model like `verify`, but return the problems in the report.

    Raises:
        ArtifactError: There is nothing to read, or the manifest or an index is damaged.
    """
    path = as_path(path)
    if not is_artifact_folder(path):
        tensors = open_checkpoint(path).tensors
        entries = _describe_tensors(tensors)
        problems = _check_requested_pattern(pattern, entries, {name: tensor.read for name, tensor in tensors.items()})
        return report_on_tensors(str(path), entries, problems=problems, is_packed=False)
    artifact = Artifact(path)
    artifact.check_files()
    entries = artifact.manifest.tensors
    problems = dict(_find_problems(artifact))
    readers = {name: partial(artifact.read_bits, name) for name in entries if name not in problems}
    problems |= _check_requested_pattern(pattern, {name: entries[name] for name in readers}, readers)
    report = report_on_tensors(str(path), entries, problems=problems, disk_bytes=artifact.disk_bytes, is_packed=True)
    return report.note_verified_patterns(_find_verified_patterns(entries))


def _find_verified_patterns(entries: Mapping[str, TensorEntry]) -> dict[str, str]:
    """Return tensor → the pattern by which it was verified, where that is not the requested one."""
    found = {
        name: find_verified_pattern(entry.pruned.pattern, entry.view, entry.pruned)
        for name, entry in entries.items()
        if entry.pruned is not None and entry.view is not None
    }
    return {name: pattern for name, pattern in found.items() if pattern != entries[name].pattern}


def _describe_tensors(tensors: Mapping[str, SourceTensor]) -> dict[str, TensorEntry]:
    return {name: describe_tensor(name, tensor) for name, tensor in tensors.items()}


def _find_problems(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """Yield the tensors that do not match the manifest, with the reason."""
    for name, entry in artifact.manifest.tensors.items():
        try:
            with explain_out_of_memory(
                f"{artifact.path}: tensor {format_value(name)} cannot be verified", entry.dense_bytes
            ):
                problem = _find_problem(artifact, name, entry)
        except OutOfMemoryError:
            raise
        except ArtifactError as error:
            problem = str(error)
        if problem is not None:
            yield name, problem


def _find_problem(artifact: Artifact, name: str, entry: TensorEntry) -> str | None:
    bits = artifact.read_bits(name)
    nonzero = DTYPES[entry.dtype].nonzero(bits)
    alive = count_true(nonzero)
    zeros, negative = bits.size - alive, count_true(bits) - alive
    if (zeros, negative) != (entry.zeros, entry.negative_zeros):
        return f"{zeros:,} zeros ({negative:,} of them -0.0), but the manifest says {entry.zeros:,}"
    if entry.pruned is None and negative:
        nonzero = bits != 0
    del bits  # frees memory: the pattern is verified on the booleans
    return _check_stated_pattern(entry, nonzero)


def _check_stated_pattern(entry: TensorEntry, nonzero: npt.NDArray[np.bool_]) -> str | None:
    """Explain why a tensor does not have the pattern that the manifest states; ``None``: it has the pattern.

    Args:
        entry: The tensor in the manifest.
        nonzero: Which numbers are not zero. In a tensor that was not pruned, ``-0.0`` counts as a number.
    """
    if entry.pattern is None or entry.view is None:
        return None
    if entry.pruned is None:
        problem = verify_recognized_pattern(entry.pattern, entry.view, nonzero)
        return problem and f"not {entry.pattern!r}: {problem}"
    problem = verify_pattern(entry.pattern, entry.view, nonzero, entry.pruned)
    return problem and f"no longer {entry.pattern!r}: {problem}"


def _check_requested_pattern(
    pattern: str | None, entries: Mapping[str, TensorEntry], readers: Mapping[str, Callable[[], Bits]]
) -> dict[str, str]:
    """Map each weight that does not have the requested pattern to the reason."""
    if pattern is None:
        return {}
    views = {
        name: view
        for name, entry in entries.items()
        if entry.layer is not None and (view := entry.view) is not None and fits_pattern(pattern, view)
    }
    if not views:
        raise ArtifactError(f"The pattern {pattern!r} does not fit the weight of any layer.")
    dense = {name for name in views if _is_dense_by_plan(entries[name], pattern)}
    if len(dense) == len(views):
        return dict.fromkeys(views, f"not {pattern!r}: it has no zeros")
    problems = {}
    for name in views:
        if name not in dense and (problem := _check_requested_weight(pattern, name, entries[name], readers[name])):
            problems[name] = f"not {pattern!r}: {problem}"
    return problems


def _is_dense_by_plan(entry: TensorEntry, pattern: str) -> bool:
    """Whether a run with this pattern left a weight dense, as a global ranking may do."""
    return entry.pruned is not None and entry.pruned.pattern == pattern and entry.pruned.pruned_units == 0


def _check_requested_weight(pattern: str, name: str, entry: TensorEntry, read: Callable[[], Bits]) -> str | None:
    """Explain why a weight does not have the requested pattern; ``None``: it has the pattern."""
    if entry.pruned is not None and entry.pruned.pattern == pattern and ":" not in pattern:
        return None  # verified with the manifest, which allows zeros by chance outside of pruned units
    assert entry.view is not None
    with explain_out_of_memory(f"tensor {format_value(name)} cannot be verified", entry.dense_bytes):
        return verify_pattern(pattern, entry.view, DTYPES[entry.dtype].nonzero(read()))
