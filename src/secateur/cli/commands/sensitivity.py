"""Define ``secateur sensitivity``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import typer

from secateur._progress import ProgressDisplay
from secateur.cli.messages import say
from secateur.cli.options import (
    LAYER_SOLVERS,
    PATTERNS,
    AsJson,
    CalibrationFile,
    ConfigFile,
    Device,
    Length,
    Model,
    Sequences,
    Weights,
    complete_names,
)
from secateur.cli.output import show
from secateur.cli.report_file import ReportFile, check_report_option, write_job_report

__all__ = ["sensitivity"]


def sensitivity(
    model: Model,
    config: ConfigFile = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern to measure, such as 1x1, 4x1 or 2:4. Can be repeated.",
            show_default="that of the file, or 1x1",
            autocompletion=complete_names(PATTERNS),
        ),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0, max=1.0, help="Share of each layer to prune. Can be repeated.", show_default="0.25, 0.5, 0.75"
        ),
    ] = None,
    metric: Annotated[
        Literal["layer", "block"],
        typer.Option(help="Error of the outputs of each layer, or of the block that it is in."),
    ] = "layer",
    solver: Annotated[
        str,
        typer.Option(
            help="Solver: magnitude, wanda, ria, sparsegpt or alps.", autocompletion=complete_names(LAYER_SOLVERS)
        ),
    ] = "wanda",
    weights: Weights = None,
    calibration: CalibrationFile = None,
    sequences: Sequences = None,
    length: Length = None,
    device: Device = None,
    output: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="JSON file to write the losses to, for secateur prune --allocation."),
    ] = None,
    report_file: ReportFile = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Measure how much each layer of a torch model can lose.

    Each layer is pruned alone, with every pattern and sparsity. All of them are computed from one pass over the
    calibration data. Without --calibration, language models use the documentation that comes with Python. --config
    selects layers; its pattern is the default, and its target is ignored.

    secateur prune --allocation FILE distributes a target by the file that --output writes, and --report draws the
    losses as a heat map. With a function as metric, use secateur.sensitivity in Python.

    [bold]Examples[/bold]

    secateur sensitivity ./my-llama --pattern 1x1 --pattern 2:4 --output losses.json

    secateur sensitivity ./my-llama --sparsity 0.5 --sparsity 0.7 --calibration wiki.txt --report losses.html

    secateur sensitivity my_nets:build --weights net.pt --calibration images.npz --metric block --json
    """
    from secateur.cli.calibration_options import CalibrationOptions
    from secateur.cli.sensitivity_job import SensitivityJob, check_output

    check_report_option(report_file)
    check_output(output)
    job = SensitivityJob(
        model=model,
        weights=weights,
        config=config,
        patterns=tuple(pattern or ()),
        sparsities=tuple(sparsity or ()),
        metric=metric,
        solver=solver,
        data=CalibrationOptions(file=calibration, sequences=sequences, length=length, device=device),
    )
    with ProgressDisplay() as steps, redirect_stdout(sys.stderr):  # a model's code may print
        result = job.run(steps)
    if output is not None:
        result.write(output)
    show(result, as_json=as_json)
    if output is not None:
        say(f"Written to {output}.")
    write_job_report(report_file, result, title=f"{model}, sensitivity", facts=job.data.facts)
