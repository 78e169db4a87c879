"""Define ``secateur search``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import typer

from secateur._progress import ProgressDisplay
from secateur.cli.messages import say
from secateur.cli.options import AsJson, CalibrationFile, ConfigFile, Device, Length, Model, Sequences, Weights
from secateur.cli.output import show
from secateur.cli.report_file import ReportFile, check_report_option, write_job_report

__all__ = ["search"]


def search(
    model: Model,
    space: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="YAML or JSON file with the choices for each setting.")
    ],
    objective: Annotated[
        str, typer.Option(help="Function that returns the quality of a pruned model, as package.module:name.")
    ],
    config: ConfigFile = None,
    cost: Annotated[
        Literal["parameters", "bytes", "flops", "latency"],
        typer.Option(help="What to minimize: weights that are not zero, bytes as saved, FLOPs, or seconds per call."),
    ] = "parameters",
    trials: Annotated[int, typer.Option(min=1, help="Number of trials, including those in the storage.")] = 40,
    sampler: Annotated[
        Literal["tpe", "nsga2", "random", "grid"], typer.Option(help="How candidates are chosen.")
    ] = "tpe",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampler.")] = 0,
    storage: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File in which the search is stored, to resume it.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(min=0.0, help="Stop trials whose layers lost more than this share of their output energy."),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Maximum cost of the trial for --output, as a share of the dense model."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="YAML file for the configuration of the best trial.")
    ] = None,
    weights: Weights = None,
    calibration: CalibrationFile = None,
    sequences: Sequences = None,
    length: Length = None,
    device: Device = None,
    report_file: ReportFile = None,
    *,
    minimize: Annotated[bool, typer.Option("--minimize", help="The objective is better if it is smaller.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search for patterns, sparsities and methods with the best quality at each cost.

    Each trial prunes a copy of a torch model with other settings and measures its cost and its quality. The result is a
    list of trials and their Pareto front. The objective is a function of the pruned model, in a module of the current
    directory or of an installed package.

    The file of the space has the settings pattern, sparsity, groups, width, solver, refine and slim_solver. With
    --config, all trials share the settings of that file, except its pattern and target.

    Calibration data is used if --calibration, --sequences or --length is given, or if a method in the space needs it.
    To resume after an interruption, run the same command with the same --storage again.

    [bold]Examples[/bold]

    secateur search my_nets:build --weights net.pt --space space.yaml --objective my_nets:accuracy --storage search.log

    secateur search ./my-llama --space space.yaml --objective my_metrics:perplexity --minimize --cost bytes

    secateur search ./my-llama --space space.yaml --objective my_metrics:score --max-cost 0.5 --output best.yaml
    """
    from secateur.cli.calibration_options import CalibrationOptions
    from secateur.cli.search_job import SearchJob, check_output_file

    check_report_option(report_file)
    check_output_file(output, max_cost)
    job = SearchJob(
        model=model,
        weights=weights,
        space=space,
        objective=objective,
        config=config,
        data=CalibrationOptions(file=calibration, sequences=sequences, length=length, device=device),
        max_error=max_error,
        options={
            "cost": cost,
            "direction": "minimize" if minimize else "maximize",
            "trials": trials,
            "sampler": sampler,
            "seed": seed,
            "storage": storage,
        },
    )
    with redirect_stdout(sys.stderr):  # a model's code may print
        with ProgressDisplay() as steps:
            loaded = job.load(steps)
        result = job.search(loaded)
    show(result, as_json=as_json)
    if output is not None:
        say(job.write_best(result, output, max_cost))
    write_job_report(report_file, result, title=f"{model}, search", facts=job.data.facts)
