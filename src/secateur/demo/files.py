"""Write the results of the demo to disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import secateur
from secateur.artifact import ArtifactReport
from secateur.demo.digits import DigitsResult, PruningSetting
from secateur.demo.language import PACKAGE, PATTERN, WINDOW, LanguageResults
from secateur.demo.sentences import EmbeddingComparison
from secateur.demo.tables import DigitsResults
from secateur.errors import ConfigError
from secateur.frameworks import detect_framework

__all__ = ["SAVED_SETTING", "make_folder", "make_loading_code", "write_files"]

SAVED_SETTING = PruningSetting("4x1", 0.9)
"""The setting whose pruned networks are saved."""


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        ConfigError: The folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {str(folder)!r} cannot be created: {error.strerror}.") from error


def write_files(
    folder: Path,
    torch: DigitsResults,
    keras: DigitsResults | None = None,
    comparisons: Sequence[EmbeddingComparison] = (),
    language: LanguageResults | None = None,
) -> tuple[dict[str, ArtifactReport], Path]:
    """Save the pruned networks of the first seed, and all numbers as JSON, in an existing folder.

    Returns:
        The name of each folder with a saved network → its report, and the path of the JSON file.
    """
    artifacts = _save_networks(folder, torch) | ({} if keras is None else _save_networks(folder, keras))
    numbers = torch.to_dict() | {
        "keras": None if keras is None else keras.to_dict(),
        "sentences": [_describe_comparison(comparison) for comparison in comparisons],
        "language": None if language is None else _describe_language(language),
        "files": {name: _describe_result(result) for name, (result, _) in artifacts.items()},
    }
    report = folder / "report.json"
    report.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return {name: artifact for name, (_, artifact) in artifacts.items()}, report


def make_loading_code(folder: Path, names: Iterable[str]) -> list[str]:
    r"""Return the lines of Python that load the saved networks in a folder.

    Examples:
        >>> print(*make_loading_code(Path("out"), ["keras-conv-4x1-90"]), sep="\n")
        import secateur
        keras_conv = secateur.load('out/keras-conv-4x1-90')
    """
    imports, loads = {"import secateur": None}, []
    for name in names:
        framework, net = name.split("-")[:2]
        model = ""
        if framework == "pytorch":
            imports["from secateur.demo.torch_digits import NETS"] = None
            model = f", NETS[{net!r}]()"
        loads.append(f"{framework}_{net} = secateur.load({str(folder / name)!r}{model})")
    return [*imports, *loads]


def _save_networks(folder: Path, results: DigitsResults) -> dict[str, tuple[DigitsResult, ArtifactReport]]:
    """Save the networks pruned with `SAVED_SETTING`; return the name of each folder → its result and its report."""
    artifacts = {}
    for row in results.rows:
        if row.setting == SAVED_SETTING:
            result = row.results[0]
            framework, percent = detect_framework(result.model), f"{100 * SAVED_SETTING.target_sparsity:.0f}"
            name = f"{framework}-{row.net}-{SAVED_SETTING.pattern}-{percent}"
            artifacts[name] = result, secateur.save(result.model, folder / name, report=result.report)
    return artifacts


def _describe_result(result: DigitsResult) -> dict[str, Any]:
    return {
        "seed": result.seed,
        "accuracy": result.accuracy,
        "dense_accuracy": result.dense_accuracy,
        "config": result.config.to_dict(),
        "plan": secateur.plan(result.model, result.config).to_dict(),
        "report": result.report.to_dict(),
    }


def _describe_comparison(comparison: EmbeddingComparison) -> dict[str, Any]:
    return {
        "pattern": comparison.setting.pattern,
        "target": comparison.setting.target_sparsity,
        "sparsity": comparison.report.sparsity,
        "cosine_mean": comparison.mean,
        "cosine_worst": comparison.worst,
        "seconds": comparison.seconds,
    }


def _describe_language(results: LanguageResults) -> dict[str, Any]:
    values = asdict(results)
    solvers = values.pop("solvers")
    return {"model": PACKAGE, "pattern": PATTERN, "window": WINDOW} | values | {"solved": solvers}
