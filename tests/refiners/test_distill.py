"""Test how long `Distill` goes on, what it keeps, and what it reports."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from oneshot.problems import batches
from secateur.distributed.pytorch.team import Team
from secateur.errors import ConfigError
from secateur.oneshot.pytorch.calibration.batches import read_batches
from secateur.refiners import Distill
from secateur.refiners.base import ModelTask
from secateur.refiners.held_out import PATIENCE, BestValues, split_held_out
from secateur.refiners.pace import Pace
from secateur.refiners.tuning import MaskedAdam
from tiny_models import bits, deep_mlp

NAN = float("nan")


class Clock:
    """Advances by the same time whenever a step of work is done."""

    def __init__(self, seconds_per_step: float) -> None:
        self.now = 100.0
        self.seconds_per_step = seconds_per_step

    def __call__(self) -> float:
        return self.now

    def work(self, *_: object) -> None:
        self.now += self.seconds_per_step


def take_steps(clock: Clock, **limits: Any) -> tuple[list[float], Pace]:
    pace, shares = Pace(clock=clock, **limits), []
    while (share := pace.begin_step()) is not None:
        shares.append(share)
        clock.work()
    return shares, pace


def test_steps_decay_with_their_number() -> None:
    shares, pace = take_steps(Clock(1.0), steps=4)
    assert shares == [1.0, 0.75, 0.5, 0.25]
    assert pace.describe_end() == "4 steps"


def test_steps_decay_with_time_and_end_before_it_is_over() -> None:
    clock = Clock(2.0)
    shares, pace = take_steps(clock, seconds=9.0)
    assert shares == pytest.approx([1.0, 7 / 9, 5 / 9, 3 / 9])
    assert clock.now == 108.0  # one more step would take 2 s, and 1 s is left
    assert pace.describe_end() == "4 steps, until the time was over"


def test_the_first_limit_counts() -> None:
    assert take_steps(Clock(1.0), steps=3, seconds=100.0)[0] == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert len(take_steps(Clock(1.0), steps=30, seconds=10.0)[0]) == 9
    assert take_steps(Clock(1.0), steps=3, seconds=100.0)[1].describe_end() == "3 steps"


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_no_step_is_taken_if_the_time_is_over(seconds: float) -> None:
    shares, pace = take_steps(Clock(1.0), seconds=seconds)
    assert shares == []
    assert pace.describe_end() == "0 steps, until the time was over"


def test_the_clock_of_the_first_rank_decides() -> None:
    class Follower(Team):
        def share(self, value: Any) -> Any:
            return value + 1000.0

    assert Pace(seconds=100.0, team=Follower(), clock=Clock(1.0)).begin_step() is None


def test_the_rest_is_estimated() -> None:
    clock = Clock(2.0)
    pace = Pace(seconds=21.0, clock=clock)
    assert (pace.estimate_total(), pace.estimate_seconds_left()) == (None, 21.0)
    for _ in range(4):
        pace.begin_step()
        clock.work()
    assert (pace.estimate_total(), pace.estimate_seconds_left()) == (10, 12.0)
    assert Pace(clock=clock).estimate_seconds_left() is None
    by_steps = Pace(steps=5, clock=clock)
    by_steps.begin_step()
    clock.work()
    assert (by_steps.estimate_total(), by_steps.estimate_seconds_left()) == (5, 8.0)


def test_held_out_sequences_are_evenly_spaced() -> None:
    assert split_held_out(32, 1 / 16)[1] == [15, 31]
    assert split_held_out(32, 0.0) == (list(range(32)), [])
    for total, share in itertools.product((1, 2, 3, 7, 32), (0.0, 0.1, 0.3, 0.5)):
        tuned, held_out = split_held_out(total, share)
        assert sorted(tuned + held_out) == list(range(total))
        assert len(held_out) == min(round(share * total), total - 1)


def adjust(losses: list[float], interval: int = 1) -> tuple[int, float, str]:
    """Add 1 to a weight in each step while the losses are as given; returns the steps, the weight and the remark."""
    model = nn.Linear(1, 1)
    optimizer = MaskedAdam(model, {"weight": torch.ones(1, 1, dtype=torch.bool)}, 0.1)
    model.weight.data.zero_()
    stream: Iterator[float] = iter(losses)
    best = BestValues(optimizer, lambda: next(stream), interval)
    steps = 0
    while best.may_improve(steps) and steps < 8:
        model.weight.data += 1
        steps += 1
    remark = best.restore(steps)
    return steps, float(model.weight.detach()), remark


def test_the_values_with_the_lowest_loss_are_kept() -> None:
    assert adjust([9, 8, 7, 6, 5, 4, 3, 2, 1]) == (8, 8.0, "held-out loss 9 → 1")
    assert adjust([9, 8, 3, 6, 5, 2, 4, 5, 6]) == (8, 5.0, "held-out loss 9 → 2 after 5 steps")
    assert adjust([9, 8, 7], interval=5) == (8, 8.0, "held-out loss 9 → 7")


def test_tuning_stops_when_the_loss_no_longer_falls() -> None:
    losses = [5.0, 4.0, *[6.0] * PATIENCE]
    remark = "until the held-out loss stopped falling: 5 → 4 after 1 step"
    assert adjust(losses) == (1 + PATIENCE, 1.0, remark)


@pytest.mark.parametrize(
    ("losses", "best"),
    [([3.0, *[NAN] * 9], 0), ([NAN] * 9, 0), ([NAN, 3.0, *[4.0] * 9], 1), ([NAN, NAN, 3.0, *[NAN] * 9], 2)],
)
def test_losses_that_are_no_numbers_are_never_the_lowest(losses: list[float], best: int) -> None:
    assert adjust(losses)[:2] == (best + PATIENCE, float(best))


def build_task(model: nn.Module, refiner: Distill, **options: Any) -> ModelTask:
    read = read_batches(model, batches(8))
    with torch.no_grad():
        targets = refiner.targets(model, read, torch.device("cpu"))
    masks = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight[:, ::2] = 0
                masks[name] = weight != 0
    return ModelTask(model=model, masks=masks, batches=read, device=torch.device("cpu"), targets=targets, **options)


def test_distill_stops_by_the_clock_of_the_run() -> None:
    clock, steps = Clock(3.0), []

    def report_step(*values: object) -> None:
        steps.append(values)
        clock.work()

    refiner = Distill(minutes=1)
    remark = refiner.refine(build_task(deep_mlp(), refiner, seconds=20.0, clock=clock, report_step=report_step))
    assert remark == "6 steps, until the time was over"
    assert steps[0] == (1, None, 20.0)
    assert steps[-1] == (6, 6, pytest.approx(2.0, abs=3.0))
    refiner = Distill(minutes=0.1)
    task = build_task(deep_mlp(), refiner, seconds=20.0, clock=clock, report_step=clock.work)
    assert refiner.refine(task) == "1 step, until the time was over"


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 16),  # 8 sequences, 2 per step, 4 epochs
        ({"batches_per_step": 3}, 8),  # what is left of an epoch is not used
        ({"batches_per_step": 9}, 4),
        ({"epochs": 2}, 8),
        ({"epochs": 2, "held_out": 0.25}, 6),
        ({"epochs": 2, "minutes": 1000}, 8),
        ({"epochs": 2, "steps": 3}, 3),
    ],
)
def test_the_number_of_steps_depends_on_the_sequences(settings: dict[str, Any], steps: int) -> None:
    refiner = Distill(**settings)
    remark = refiner.refine(build_task(deep_mlp(), refiner))
    assert remark.split(",")[0] == f"{steps} steps"


@pytest.mark.parametrize("name", ["steps", "epochs", "batches_per_step", "classes"])
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, found 0"):
        Distill(**{name: 0})


def test_distill_restores_the_best_values_if_steps_are_harmful() -> None:
    refiner = Distill(steps=60, rate=30.0, held_out=0.25)
    model = deep_mlp()
    task = build_task(model, refiner)
    before = bits(model)
    assert "until the held-out loss stopped falling" in refiner.refine(task)
    assert bits(model) == before
    refiner = Distill(steps=60, rate=0.01, held_out=0.25)
    assert " → " in refiner.refine(task)
    assert bits(model) != before


def test_held_out_sequences_are_not_trained_on() -> None:
    """Targets of held-out sequences change the losses that are measured, and not the steps."""
    weights = []
    for shift in (0.0, 1.0):
        model, refiner = deep_mlp(), Distill(steps=6, rate=0.01, held_out=0.25)
        task = build_task(model, refiner)
        _, held_out = split_held_out(8, 0.25)
        for number in held_out:
            task.targets[number].logs.sub_(shift)
        refiner.refine(task)
        weights.append(bits(model))
    assert weights[0] == weights[1]


@pytest.mark.parametrize("held_out", [-0.1, 0.6, float("nan")])
def test_the_held_out_share_is_checked(held_out: float) -> None:
    with pytest.raises(ConfigError, match=rf"held_out must be in \[0, 0\.5\], found {held_out}"):
        Distill(held_out=held_out)


def test_steps_are_reported_as_progress_and_in_the_report(tmp_path: Path) -> None:
    seen: list[secateur.oneshot.Progress] = []
    execution = secateur.Execution(folder=tmp_path, keep_parts=True, progress=seen.append)
    arguments: dict[str, Any] = {
        "calibration": batches(8, rows=512),
        "solver": "wanda",
        "refine": Distill(steps=3, held_out=0.25),
        "execution": execution,
    }
    report = secateur.prune(deep_mlp(), "2:4", **arguments)
    parts = [(step.action, step.stage, step.done) for step in seen[-5:]]
    assert parts[0][0] == "Pruned"
    assert parts[1:] == [
        *(("Refined", f"the model, step {step} of 3", 5) for step in (1, 2, 3)),
        ("Refined", "the model", 6),
    ]
    assert {step.total for step in seen} == {6}
    assert seen[-1].seconds_left == 0
    names = [phase.name for phase in report.phases]
    assert names == ["layers and blocks", "the outputs of the dense model", "Distill"]
    assert report.phases[-1].remark.startswith("3 steps, held-out loss ")
    assert f"s for Distill ({report.phases[-1].remark})." in " ".join(str(report).split())
    assert sum(phase.seconds for phase in report.phases) <= report.seconds
    resumed = secateur.prune(deep_mlp(), "2:4", **arguments)
    assert resumed.phases[-1] == replace(report.phases[-1], seconds=0.0)
    assert report.to_dict()["phases"][-1]["name"] == "Distill"
