"""Define ``secateur bench``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from secateur._progress import ProgressDisplay
from secateur.cli.options import AsJson
from secateur.cli.output import make_console, show
from secateur.cli.report_file import ReportFile, check_report_option, write_job_report

__all__ = ["bench"]


def bench(
    reference: Annotated[
        str, typer.Argument(metavar="MODEL_OR_ARTIFACT", help="An artifact, or a model as in secateur prune.")
    ],
    slim: Annotated[
        str | None,
        typer.Argument(metavar="SLIM", help="A slim model, to compare with MODEL_OR_ARTIFACT as the dense one."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Code that builds the model of the artifact, as package.module:name.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File with inputs: .npz or .safetensors.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of examples per batch.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Number of tokens per example, for text models.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Number of timed rounds; the medians are shown.")] = 5,
    device: Annotated[str | None, typer.Option(help="Device to run the model on, such as cuda.")] = None,
    report_file: ReportFile = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Benchmark a pruned model against the dense one on this machine: size, loading time and forward pass.

    With SLIM, two models are compared: bytes of weights, and forward pass on the same inputs. Without it, the dense
    model is the same model with its zeros replaced by random numbers. A torch model is also compiled with
    secateur.runtime, and a second table shows the measured and the maximum speed-up of each layer. The report also
    compares the sparse model with dense bfloat16 and with torch.compile, which takes a while to compile, by speed and
    accuracy. Size and loading time are measured for artifacts only.

    Without --inputs, the inputs are random: tokens for text models, pixels for image models, numbers for Keras models.

    [bold]Examples[/bold]

    secateur bench pruned

    secateur bench ./my-llama slim --length 512

    secateur bench pruned --batch 8 --length 256 --rounds 9

    secateur bench pruned --model my_nets:build --inputs images.npz --json

    secateur bench my_nets:pruned_net --inputs images.npz --device cuda
    """
    from secateur.cli.benchmark import Benchmark
    from secateur.models import find_artifact_path

    check_report_option(report_file)
    with ProgressDisplay() as steps, redirect_stdout(sys.stderr):  # a model's code may print
        report = Benchmark(
            reference=reference,
            model=model,
            inputs=inputs,
            batch=batch,
            length=length,
            rounds=rounds,
            device=device,
            slim=slim,
        ).run(steps)
    show(report, as_json=as_json)
    if report.runtime is not None and not as_json:
        make_console().print()
        show(report.runtime, as_json=False)
    saved = find_artifact_path(reference) if slim is None else None
    write_job_report(report_file, report, title=report.table_title, saved=saved)
