"""The sparsity at every step, against the formula of Neural Compressor, in generated configurations."""

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from secateur._array import Array, count_true
from secateur.compat.neural_compressor._elements import complete_element
from secateur.compat.neural_compressor._translation import translate_element
from secateur.masking.run_options import RunOptions
from secateur.masking.updater import MaskUpdater
from secateur.patterns import get_pattern
from secateur.patterns.selection import Scores

CASES, OUTPUTS, INPUTS, UNIT, PARTS = 330, 24, 8, 4, 4

pytestmark = pytest.mark.usefixtures("registries_restored")

DECAYS = ("exp", "cos", "cube", "linear")


class Case(NamedTuple):
    """A configuration of Neural Compressor."""

    start: int
    end: int
    frequency: int
    target: float
    decay: str
    progressive: bool

    @property
    def updates(self) -> int:
        """The number of the last update, counted from 0."""
        return (self.end - self.start + self.frequency) // self.frequency - 1

    @property
    def is_partial(self) -> bool:
        """Whether it prunes in parts: not in a few steps, nor with an update after each."""
        return self.progressive and self.end - self.start > PARTS and self.frequency > 1


def generate_cases() -> list[Case]:
    chosen = random.Random(20)  # noqa: S311 - not for secrets
    cases = []
    for _ in range(CASES):
        start, length = chosen.choice([0, 0, 1, 1, 2, 7]), chosen.randint(0, 32)
        frequency = chosen.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 50])
        target = round(chosen.uniform(0.05, 0.95), 2)
        decay, progressive = chosen.choice(DECAYS), chosen.random() < 0.5
        cases.append(Case(start, start + length, frequency, target, decay, progressive))
    return cases


def compute_ratio(case: Case, update: int) -> float:
    """The share to prune at an update."""
    if case.updates == 0:
        return case.target
    progress = update / case.updates
    ratios: dict[str, float] = {
        "linear": case.target * progress,
        "cube": case.target * progress**3,
        "cos": case.target * (1 - math.cos(progress * math.pi / 2)),
        "exp": 1 - (1 - case.target) ** progress,
    }
    return ratios[case.decay]


def follow_formula(case: Case, steps: int) -> Iterator[tuple[float, float]]:
    """Yield the share of the last update, and that which is zero, before the first step and after each."""
    before = whole = now = 0.0
    last, parts = case.start, min(PARTS, case.frequency)
    interval = case.frequency if case.frequency < PARTS else case.frequency // PARTS
    for step in range(steps):
        since = step - case.start
        is_within = case.start <= step <= case.end
        if is_within and since % case.frequency == 0:
            before, whole, last = whole, compute_ratio(case, since // case.frequency), step
            now = before + (whole - before) / PARTS
        elif is_within and since % interval == 0:
            part = (step - last) // interval + 1
            now = before + (whole - before) * part / PARTS if part < parts else whole
        if step > case.end or not case.is_partial:
            now = whole
        yield whole, now


def follow_core(case: Case, steps: int) -> Iterator[tuple[float, float]]:
    """Yield the same for a run of the core with the translated keys."""
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
    keys = {
        "pattern": f"{UNIT}x1",
        "pruning_type": "magnitude_progressive" if case.progressive else "magnitude",
        "target_sparsity": case.target,
        "max_sparsity_ratio_per_op": 1.0,
        "start_step": case.start,
        "end_step": case.end,
        "pruning_frequency": case.frequency,
        "sparsity_decay_type": case.decay,
    }
    config = translate_element(complete_element(keys, {}))
    pattern = get_pattern(config, {"fc": layer}, "pytorch")
    updater = MaskUpdater(pattern, options=RunOptions(parts_until=case.end))
    scores = {"fc": abs(pattern.views["fc"].to_canonical(pattern.framework.to_array(layer.weight.detach())))}

    def stream(name: str, alive: Any) -> Scores:
        return pattern.stream(name, scores, alive)

    masks: dict[str, Array] = {}
    for step in range(steps):
        masks = updater.advance(step, stream, masks) or masks if updater.changes_masks(step) else masks
        update = updater.schedule.last_update(step)
        requested = 0.0 if update is None else updater.schedule.sparsity(update)
        yield requested, sum(count_true(~mask) for mask in masks.values()) / layer.weight.numel()


def test_every_step_has_the_sparsity_of_the_formula() -> None:
    rounding = (UNIT + 1) / (OUTPUTS * INPUTS)  # one unit, and one weight of a part
    cases = generate_cases()
    assert len(set(cases)) >= 300
    assert sum(case.is_partial for case in cases) >= 100
    assert sum((case.end - case.start) % case.frequency > 0 for case in cases) >= 100
    for case in cases:
        steps = case.end + 3
        for step, (expected, found) in enumerate(
            zip(follow_formula(case, steps), follow_core(case, steps), strict=True)
        ):
            assert found[0] == pytest.approx(expected[0], abs=1e-9), (case, step)
            assert found[1] == pytest.approx(expected[1], abs=rounding), (case, step)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # Not aligned: the target is met at the last multiple.
        (Case(1, 10, 4, 0.7, "exp", progressive=False), {4: 0.0, 5: 0.452, 8: 0.452, 9: 0.7, 12: 0.7}),
        # In parts: a quarter at the update.
        (Case(1, 13, 4, 0.7, "exp", progressive=True), {5: 0.083, 6: 0.165, 8: 0.331, 9: 0.386, 13: 0.589, 14: 0.7}),
        (Case(0, 8, 4, 0.6, "linear", progressive=False), {0: 0.0, 3: 0.0, 4: 0.3, 8: 0.6}),
    ],
)
def test_measured_runs(case: Case, expected: dict[int, float]) -> None:
    shares = [now for _, now in follow_formula(case, case.end + 3)]
    assert {step: round(shares[step], 3) for step in expected} == expected
    found = [now for _, now in follow_core(case, case.end + 3)]
    assert all(abs(found[step] - share) <= UNIT / (OUTPUTS * INPUTS) for step, share in expected.items())
