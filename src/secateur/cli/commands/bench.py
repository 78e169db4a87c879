"""``secateur bench``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import AsJson
from secateur.cli.output import console, show
from secateur.cli.progress import Steps

__all__ = ["bench"]


def bench(
    reference: Annotated[
        str, typer.Argument(metavar="MODEL_OR_ARTIFACT", help="An artifact, or a model as secateur prune takes it.")
    ],
    model: Annotated[
        str | None, typer.Option(help="package.module:name that builds the model, if the artifact cannot.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Inputs as .npz or .safetensors.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples that the model sees at once.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens in each, for a model of text.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed; medians are shown.")] = 5,
    device: Annotated[str | None, typer.Option(help="Where the model works, such as cuda.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Measure what a pruned model gains on this machine: bytes, seconds to load, and seconds of a forward pass.

    Dense stands for the same model with numbers in place of its zeros. A torch model is also compiled with
    secateur.runtime, and each layer has a row that shows what was measured, and the limit. Of a model that is not an
    artifact, bytes and loading are not measured.

    Without --inputs, a model of text reads random tokens, one of images random pixels, and a Keras model random
    numbers.

    [bold]Examples[/bold]

    secateur bench pruned

    secateur bench pruned --batch 8 --length 256 --rounds 9

    secateur bench pruned --model my_nets:build --inputs images.npz --json

    secateur bench my_nets:pruned_net --inputs images.npz --device cuda
    """
    from secateur.cli.benchmark import Benchmark

    with Steps() as steps, redirect_stdout(sys.stderr):  # a model's code may print
        report = Benchmark(
            reference=reference,
            model=model,
            inputs=inputs,
            batch=batch,
            length=length,
            rounds=rounds,
            device=device,
        ).run(steps)
    show(report, as_json=as_json)
    if report.runtime is not None and not as_json:
        console().print()
        show(report.runtime, as_json=False)
