"""What is in a saved model, whoever wrote it; and from one form into another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur._array import count_true
from secateur._files import as_path
from secateur._folders import lock_for_reading
from secateur._manifest_file import is_artifact
from secateur._memory import OutOfMemoryError, explain_out_of_memory
from secateur._wording import format_value
from secateur.artifact.claims import claims_of, configs_of
from secateur.artifact.dtypes import DTYPES, Bits
from secateur.artifact.foreign import foreign_source
from secateur.artifact.manifest import Claim, TensorEntry, explain_invalid
from secateur.artifact.proof import fits, unfounded, violation
from secateur.artifact.reader import Artifact
from secateur.artifact.report import ArtifactReport
from secateur.artifact.rows import report_on, report_on_written
from secateur.artifact.source import Source, SourceTensor
from secateur.artifact.writer import SHARD_BYTES, examined, write
from secateur.errors import ArtifactError
from secateur.frameworks import import_leaf
from secateur.results import PruningReport

__all__ = ["convert", "examine", "inspect", "verify"]


def inspect(source: Any) -> ArtifactReport:
    """What packing makes of every tensor, and which pattern its zeros have.

    Args:
        source: An artifact's folder, a safetensors file, a folder of transformers, or a model.

    Raises:
        ArtifactError: There is nothing to inspect, or it is damaged.

    Example:
        >>> import secateur, torch
        >>> model = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
        >>> report = secateur.prune(model, {"pattern": "2:4"})
        >>> row = inspect(model).tensors[0]
        >>> row.pattern, row.packed_bytes / row.dense_bytes
        ('2:4', 0.5625)
    """
    if not isinstance(source, str | Path):
        with explain_invalid("the model"):
            tensors = import_leaf("secateur.artifact", source).source(source).tensors
        return report_on(type(source).__name__, _examined(tensors), is_packed=False)
    path = as_path(source)
    if not _is_artifact(path):
        return report_on(str(path), _examined(foreign_source(path).tensors), is_packed=False)
    artifact = Artifact(path)
    found = artifact.manifest.tensors
    on_disk = artifact.disk_bytes
    if any(entry.packer is not None for entry in found.values()):
        return report_on(str(path), found, disk_bytes=on_disk, is_packed=True)
    return report_on(str(path), _examined(_source(artifact).tensors), disk_bytes=on_disk, is_packed=False)


def verify(path: str | Path, *, pattern: str | None = None) -> ArtifactReport:
    """Read every tensor and prove what is said of it.

    Of an artifact: digests, counts of zeros, and the pattern and number of pruned units of every pruned layer. Of files
    of other tools: that they can be read.

    Args:
        path: An artifact's folder, a safetensors file, or a folder of transformers.
        pattern: A pattern that the weight of every layer must have besides which it fits into, but for output layers
            and embeddings; in files that do not say what is a layer, everything with two axes or more.

    Returns:
        What there is.

    Raises:
        ArtifactError: Something is not as it should be; the message names the tensors.

    Example:
        >>> import secateur, tempfile, torch
        >>> model = torch.nn.Linear(64, 64)
        >>> folder = tempfile.mkdtemp()
        >>> report = secateur.save(model, folder, report=secateur.prune(model, {"pattern": "2:4"}))
        >>> verify(folder, pattern="2:4").problems
        {}
    """
    report = examine(path, pattern=pattern)
    if report.problems:
        raise ArtifactError(report.failure)
    return report


def examine(path: str | Path, *, pattern: str | None = None) -> ArtifactReport:
    """What `verify` finds, with the problems in the report.

    Raises:
        ArtifactError: There is nothing to read, or what holds the tensors together is damaged.
    """
    path = as_path(path)
    if not _is_artifact(path):
        tensors = foreign_source(path).tensors
        entries = _examined(tensors)
        problems = _without_pattern(pattern, entries, {name: tensors[name].read for name in tensors})
        return report_on(str(path), entries, problems=problems, is_packed=False)
    artifact = Artifact(path)
    artifact.check_files()
    found = artifact.manifest.tensors
    problems = dict(_problems(artifact))
    sound = {name: partial(_bits, artifact, name) for name in found if name not in problems}
    problems |= _without_pattern(pattern, {name: found[name] for name in sound}, sound)
    return report_on(str(path), found, problems=problems, disk_bytes=artifact.disk_bytes, is_packed=True)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    report: PruningReport | None = None,
    dense: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> ArtifactReport:
    """Write a saved model again, packed or dense, tensor by tensor; the model is not built.

    Args:
        source: An artifact's folder, a safetensors file, or a folder of transformers.
        target: The folder to write; new, empty, or an artifact, which is replaced.
        report: What pruning returned that wrote `source`; see `secateur.save`. An artifact has what was said of it.
        dense: Store every tensor as it is, in files that transformers reads.
        shard_bytes: Bytes of tensors in one shard.

    Raises:
        ArtifactError: `source` is damaged or not what the report says, or `target` cannot be written.
        StateError: The report is of another model.
    """
    path, target = as_path(source), as_path(target)
    claims: dict[str, Claim] = {}
    configs: Sequence[Mapping[str, Any]] = ()
    if _is_artifact(path):
        artifact = Artifact(path)
        artifact.check_files()
        found, configs = _source(artifact), artifact.manifest.configs
        entries = artifact.manifest.tensors.values()
        claims = {
            entry.layer: entry.pruned for entry in entries if entry.layer is not None and entry.pruned is not None
        }
    else:
        found = foreign_source(path, is_copied=True)
    if report is not None:
        claims, configs = claims_of(report, found), configs_of(report)
    manifest = write(found, target, claims=claims, configs=configs, dense=dense, shard_bytes=shard_bytes)
    return report_on_written(str(target), manifest)


def _is_artifact(path: Path) -> bool:
    with lock_for_reading(path):
        return is_artifact(path)


def _examined(tensors: Mapping[str, SourceTensor]) -> dict[str, TensorEntry]:
    return {name: examined(name, tensor) for name, tensor in tensors.items()}


def _problems(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """Tensors that are not what the manifest says of them."""
    for name, entry in artifact.manifest.tensors.items():
        try:
            with explain_out_of_memory(
                f"{artifact.path}: tensor {format_value(name)} cannot be verified", entry.dense_bytes
            ):
                problem = _problem(artifact, name, entry)
        except OutOfMemoryError:
            raise
        except ArtifactError as error:
            problem = str(error)
        if problem is not None:
            yield name, problem


def _problem(artifact: Artifact, name: str, entry: TensorEntry) -> str | None:
    bits = _bits(artifact, name)
    nonzero = DTYPES[entry.dtype].nonzero(bits)
    alive = count_true(nonzero)
    zeros, negative = bits.size - alive, count_true(bits) - alive
    if (zeros, negative) != (entry.zeros, entry.negative_zeros):
        return f"{zeros:,} zeros ({negative:,} of them -0.0), and the manifest says {entry.zeros:,}"
    if entry.pruned is None and negative:
        nonzero = bits != 0
    del bits  # the pattern is proved with the flags alone
    return _broken_pattern(entry, nonzero)


def _broken_pattern(entry: TensorEntry, nonzero: npt.NDArray[np.bool_]) -> str | None:
    """What speaks against the pattern that the manifest names; ``None``: nothing.

    Args:
        entry: The manifest's entry.
        nonzero: Where the tensor is not zero; where nobody claims that it was pruned, ``-0.0`` is not.
    """
    if entry.pattern is None or entry.view is None:
        return None
    if entry.pruned is None:
        problem = unfounded(entry.pattern, entry.view, nonzero)
        return problem and f"not {entry.pattern!r}: {problem}"
    problem = violation(entry.pattern, entry.view, nonzero, entry.pruned)
    return problem and f"not {entry.pattern!r} any more: {problem}"


def _without_pattern(
    pattern: str | None, entries: Mapping[str, TensorEntry], read: Mapping[str, Any]
) -> dict[str, str]:
    """Weights of layers that have not the pattern → why."""
    if pattern is None:
        return {}
    weights = {
        name: view
        for name, entry in entries.items()
        if entry.layer is not None and (view := entry.view) is not None and fits(pattern, view)
    }
    if not weights:
        raise ArtifactError(f"There is no weight of a layer that could have the pattern {pattern!r}.")
    problems = {}
    for name, view in weights.items():
        entry = entries[name]
        with explain_out_of_memory(f"tensor {format_value(name)} cannot be verified", entry.dense_bytes):
            problem = violation(pattern, view, DTYPES[entry.dtype].nonzero(read[name]()))
        if problem:
            problems[name] = f"not {pattern!r}: {problem}"
    return problems


def _source(artifact: Artifact) -> Source:
    """An artifact's tensors, to be written again."""
    manifest = artifact.manifest
    return Source(
        tensors={
            name: SourceTensor(
                dtype=entry.dtype,
                shape=entry.shape,
                read=partial(_bits, artifact, name),
                view=entry.view,
                layer=entry.layer,
                is_prunable=entry.layer is not None,
            )
            for name, entry in manifest.tensors.items()
        },
        aliases=manifest.aliases,
        model=manifest.model,
        write_files=artifact.copy_files,
    )


def _bits(artifact: Artifact, name: str) -> Bits:
    return artifact[name].bits
