"""What the demo leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import secateur
from secateur.artifact import ArtifactReport
from secateur.demo.digits import Case, Run
from secateur.demo.language import PACKAGE, PATTERN, WINDOW, LanguageStudy
from secateur.demo.sentences import Comparison
from secateur.demo.tables import Study
from secateur.errors import ConfigError
from secateur.frameworks import detect_framework

__all__ = ["SAVED", "make_folder", "write_files"]

SAVED = Case("4x1", 0.9)
"""The case whose pruned networks are written."""


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        ConfigError: That fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {str(folder)!r} cannot be made: {error.strerror}.") from error


def write_files(
    folder: Path,
    torch: Study,
    keras: Study | None = None,
    comparisons: Sequence[Comparison] = (),
    language: LanguageStudy | None = None,
) -> tuple[list[ArtifactReport], Path]:
    """Write the pruned networks of the first seed, and all numbers as JSON, into a folder that exists.

    Returns:
        What was saved of each network, and the file with the numbers.
    """
    saved = _save_networks(folder, torch) | ({} if keras is None else _save_networks(folder, keras))
    numbers = torch.to_dict() | {
        "keras": None if keras is None else keras.to_dict(),
        "sentences": [_comparison(comparison) for comparison in comparisons],
        "language": None if language is None else _language(language),
        "files": {name: _describe_run(run) for name, (run, _) in saved.items()},
    }
    report = folder / "report.json"
    report.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return [artifact for _, artifact in saved.values()], report


def _save_networks(folder: Path, study: Study) -> dict[str, tuple[Run, ArtifactReport]]:
    """Write what there is of `SAVED`; returns the folder's name → the run and what was saved of it."""
    saved = {}
    for row in study.rows:
        if row.case == SAVED:
            run = row.runs[0]
            name = f"{detect_framework(run.model)}-{row.net}-{SAVED.pattern}-{100 * SAVED.target:.0f}"
            saved[name] = run, secateur.save(run.model, folder / name, report=run.report)
    return saved


def _describe_run(run: Run) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "accuracy": run.accuracy,
        "dense_accuracy": run.dense_accuracy,
        "config": run.config.to_dict(),
        "plan": secateur.plan(run.model, run.config).to_dict(),
        "report": run.report.to_dict(),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "pattern": comparison.case.pattern,
        "target": comparison.case.target,
        "sparsity": comparison.report.sparsity,
        "cosine_mean": comparison.mean,
        "cosine_worst": comparison.worst,
        "seconds": comparison.seconds,
    }


def _language(study: LanguageStudy) -> dict[str, Any]:
    return {"model": PACKAGE, "pattern": PATTERN, "window": WINDOW} | asdict(study)
