"""Measure how well a latency budget of `secateur.slim` holds, and what slimming under it costs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/slim_latency.py --models minilm resnet --runs 5

Each run slims a new copy of the dense model with ``budget={"latency": 0.6}``, and then times it and the dense model in
turn, apart from the timings that slimming itself made. The models keep a usable quality only with a better solver than
``magnitude``, which is used here because it leaves the time alone.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import nn

import secateur
from _resnet20 import SIZE, ResNet20
from _timing import measure_wall_seconds
from secateur._table import Table
from secateur.demo.sentences import Encoder

TOLERANCE = 0.1
"""Greatest relative difference between the latency that was asked for and the measured one."""


def make_minilm() -> tuple[nn.Module, Any]:
    tokens = torch.randint(1000, 20000, (8, 64))
    return Encoder().model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def make_smollm() -> tuple[nn.Module, Any]:
    from oneshot import load_model

    return load_model()[0], {"input_ids": torch.randint(1000, 20000, (1, 128)), "use_cache": False}


def make_resnet() -> tuple[nn.Module, Any]:
    return ResNet20().eval(), torch.randn(32, 1, SIZE, SIZE)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "minilm": make_minilm,
    "smollm": make_smollm,
    "resnet": make_resnet,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--latency", type=float, default=0.6, help="share of the dense model's to keep")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=21, help="of timing")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in options.models:
        torch.manual_seed(0)
        dense, inputs = MODELS[name]()
        for run in range(1, options.runs + 1):
            rows.append([name, str(run), *measure_run(dense.eval(), inputs, options)])
            print(" ".join(rows[-1]), flush=True)
    columns = ("model", ">run", ">predicted", ">measured then", ">afterwards", "within 10 %", ">dense, ms", ">seconds")
    title = f"Latency under a budget of {options.latency:g} of the dense model's"
    Console(width=120).print(Table(title=title, columns=columns, rows=rows))


def measure_run(dense: nn.Module, inputs: Any, options: argparse.Namespace) -> list[str]:
    """Slim a copy, and compare the latency that the report gives with another measurement."""
    slim = copy.deepcopy(dense)
    start = time.perf_counter()
    report = secateur.slim(slim, calibration=[inputs], solver="magnitude", budget={"latency": options.latency})
    seconds = time.perf_counter() - start
    with torch.no_grad():
        calls = {name: make_call(model, inputs) for name, model in {"dense": dense, "slim": slim}.items()}
        medians = measure_wall_seconds(calls, options.rounds)
    measured = medians["slim"] / medians["dense"]
    is_near = abs(measured / options.latency - 1) <= TOLERANCE
    assert report.budget is not None
    predicted = f"{report.budget.predicted / report.budget.dense:.3f}"
    milliseconds = f"{1000 * medians['dense']:.1f}"
    return [
        predicted,
        f"{report.budget.share:.3f}",
        f"{measured:.3f}",
        "yes" if is_near else "no",
        milliseconds,
        f"{seconds:.0f}",
    ]


def make_call(model: nn.Module, inputs: Any) -> Callable[[], object]:
    return lambda: model(**inputs) if isinstance(inputs, dict) else model(inputs)


if __name__ == "__main__":
    main()
