"""What the demo leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import secateur
from secateur.demo.digits import Case, Recipe, Run
from secateur.demo.sentences import Comparison
from secateur.demo.tables import Row
from secateur.errors import ConfigError

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


def write_files(folder: Path, recipe: Recipe, rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[Path]:
    """Write the pruned networks of the first seed, and all numbers as JSON, into a folder that exists.

    Returns:
        The files written; the last is the JSON.
    """
    saved = {_name(row): row.runs[0] for row in rows if row.case == SAVED}
    for name, run in saved.items():
        save_file(run.model.state_dict(), folder / name, metadata={"config": run.config.to_json()})
    numbers = {
        "torch": torch.__version__,
        "training": asdict(recipe),
        "digits": [row.to_dict() for row in rows],
        "sentences": [_comparison(comparison) for comparison in comparisons],
        "files": {name: _described(run) for name, run in saved.items()},
    }
    report = folder / "report.json"
    report.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return [*(folder / name for name in saved), report]


def _name(row: Row) -> str:
    return f"{row.net}-{row.case.pattern}-{100 * row.case.target:.0f}.safetensors"


def _described(run: Run) -> dict[str, Any]:
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
