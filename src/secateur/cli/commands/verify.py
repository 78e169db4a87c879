"""Define ``secateur verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur._progress import ProgressDisplay
from secateur._wording import format_count
from secateur.cli.options import PATTERNS, AsJson, complete_names
from secateur.cli.output import show, show_text
from secateur.errors import ArtifactError

if TYPE_CHECKING:
    from secateur.artifact import ArtifactReport

__all__ = ["verify"]


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", exists=True, help="Artifact, transformers folder or .safetensors file.")
    ],
    pattern: Annotated[
        str | None,
        typer.Option(help="Pattern that the weights of all layers must have.", autocompletion=complete_names(PATTERNS)),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Verify every tensor of a saved model.

    For an artifact, this checks the checksums, the counts of zeros, and the pattern and number of pruned units of each
    pruned layer. A transformers folder or a .safetensors file from another tool is checked for readability. With
    --pattern, the weight of every layer that can be pruned must also have that pattern, except output layers,
    embeddings, and layers that a run with this pattern left dense because others were pruned more.

    If a check fails, the exit code is 1 and the message names the tensors.

    [bold]Examples[/bold]

    secateur verify pruned

    secateur verify pruned --pattern 2:4

    secateur verify model.safetensors --pattern 4x1 --json
    """
    from secateur.artifact import examine

    with ProgressDisplay() as steps:
        steps.begin(f"Reading {path}")
        report = examine(path, pattern=pattern)
    if as_json:
        show(report, as_json=True)
    if report.problems:
        raise ArtifactError(report.failure)
    if not as_json:
        show_text(_summarize(report))


def _summarize(report: ArtifactReport) -> str:
    patterns = [row.pattern for row in report.tensors if row.pattern is not None and row.zeros]
    dense = sum(row.pattern is not None and not row.zeros for row in report.tensors)
    counts = ", ".join(f"{pattern} in {patterns.count(pattern):,}" for pattern in dict.fromkeys(patterns))
    tensors = format_count(len(report.tensors) + report.others, "tensor")
    left_dense = f"; left dense by the run: {dense:,}" if dense else ""
    return f"{report.title}: valid. {tensors} read; patterns of weights: {counts or 'none'}{left_dense}."
