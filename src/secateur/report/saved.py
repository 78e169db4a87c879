"""Summarize an artifact, a model that another tool saved, or the folder of an unfinished run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur._files import as_path, digest_file, read_small_file
from secateur._manifest_file import MANIFEST
from secateur._wording import format_count
from secateur.artifact import Artifact, inspect
from secateur.artifact.manifest import Manifest
from secateur.artifact.safetensors_file import TensorFile
from secateur.errors import SecateurError, StateError
from secateur.oneshot.run_folder import FINISHED, RUN, unseal_values
from secateur.report.masks import Mask, read_masks
from secateur.results import LayerRecord, LayerResult, Summary

__all__ = ["read_saved_masks", "summarize_saved"]

MAX_STATE_BYTES = 100_000_000
"""Maximum size of a file that describes a run or a finished part."""

WAITING = "not pruned yet: the run was interrupted"


def summarize_saved(path: str | Path) -> Summary:
    """Summarize a saved model or an unfinished run.

    Args:
        path: The folder of an artifact or of an unfinished run, a transformers folder, or a safetensors file.

    Raises:
        ArtifactError: There is nothing to read, or it is damaged.
        StateError: The folder of a run is damaged.
    """
    path = as_path(path)
    if (path / RUN).is_file():
        return _summarize_run(path)
    summary = inspect(path).summarize()
    return _describe_artifact(path).join(summary) if (path / MANIFEST).is_file() else summary


def read_saved_masks(path: str | Path) -> Iterator[Mask]:
    """Read the masks of a saved model, one at a time; an unfinished run has none."""
    path = as_path(path)
    return iter(()) if (path / RUN).is_file() else read_masks(path, inspect(path).tensors)


def _describe_artifact(path: Path) -> Summary:
    """Summarize the manifest of an artifact, except for the sizes of tensors."""
    manifest = Artifact(path).manifest
    facts = {"Saved by": manifest.written_by}
    if (builder := manifest.model) is not None:
        facts = {"Model": f"{builder.name}, built by {builder.kind} with {builder.framework}"} | facts
    digests = {MANIFEST: digest_file(path / MANIFEST).sha256}
    return Summary(
        title=str(path),
        facts=facts,
        configs=manifest.configs,
        digests=digests | {name: entry.sha256 for name, entry in manifest.files.items()},
        layers=tuple(_describe_layers(manifest)),
    )


def _describe_layers(manifest: Manifest) -> Iterator[LayerRecord]:
    """Yield the records of layers in the manifest, without their sizes."""
    for name, entry in manifest.tensors.items():
        if entry.layout is not None:
            claim = entry.pruned
            yield LayerRecord(
                name=entry.layer or name.removesuffix(".weight"),
                units=None if claim is None else claim.units,
                pruned_units=None if claim is None else claim.pruned_units,
                error=None if claim is None else claim.error,
                attributes=(manifest.sizes or {}).get(entry.layer or ""),
                sha256=entry.sha256,
            )


def _summarize_run(folder: Path) -> Summary:
    """Summarize an unfinished run."""
    with _explain_damage(folder / RUN):
        described = unseal_values(read_small_file(folder / RUN, MAX_STATE_BYTES).decode())["described"]
        layers = {str(name): tuple(map(int, shape)) for name, shape in described["layers"].items()}
        summary = Summary(
            title=str(folder),
            facts={"Solver": str(described["recipe"])},
            configs=(dict(described["config"]),),
            digests={"calibration data": str(described["data"])},
        )
    parts = [_read_part(part) for part in sorted(folder.glob(FINISHED))]
    finished = {record.name: record for part in parts for record in part if record.name in layers}
    waiting = [
        LayerRecord(name=name, shape=shape, dense_reason=WAITING)
        for name, shape in layers.items()
        if name not in finished
    ]
    return replace(
        summary,
        headlines=(f"{len(finished):,} of {format_count(len(layers), 'layer')} are pruned.",),
        layers=(*finished.values(), *waiting),
        interruption=(
            f"{format_count(len(parts), 'part')} {'is' if len(parts) == 1 else 'are'} finished and stored in "
            f"{folder}. Repeat the same command or call to resume from there."
        ),
    )


def _read_part(path: Path) -> list[LayerRecord]:
    """Read the layer records of a finished part of a run."""
    with _explain_damage(path):
        is_text = path.suffix == ".state"
        metadata: Mapping[str, Any] = (
            json.loads(read_small_file(path, MAX_STATE_BYTES)) if is_text else TensorFile(path).metadata
        )
        found = json.loads(metadata["found"])
        errors = {str(name): float(error) for name, error in found.get("errors", {}).items()}
        results = [_read_result(values) for values in found.get("results", {}).values()]
        records = [result.record(error=errors.pop(result.name, None)) for result in results]
        return [*records, *(LayerRecord(name=name, error=error) for name, error in errors.items())]


def _read_result(values: Mapping[str, Any]) -> LayerResult:
    counts = {name: int(values[name]) for name in ("weights", "pruned_weights", "units", "pruned_units")}
    shape = tuple(map(int, values["shape"]))
    return LayerResult(name=str(values["name"]), pattern=str(values["pattern"]), shape=shape, **counts)


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    """Raise `StateError` if a file does not have the expected content."""
    try:
        yield
    except SecateurError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise StateError(f"{path} cannot be read ({type(error).__name__}: {error}). It is damaged.") from error
