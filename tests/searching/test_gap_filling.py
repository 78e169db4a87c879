"""Tests of the trials that a search chooses itself: the same sparsity everywhere, and then the gaps of the front."""

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("optuna")

from searching.nets import build_net
from secateur.searching import PruningSpace, Range, TrialResult
from secateur.searching.candidate import CandidateFactory
from secateur.searching.error_model import choose_sparsities
from secateur.searching.gap_filling import GapFilling
from secateur.searching.model_space import make_factory
from secateur.searching.trial_result import find_front
from secateur.searching.warm_start import WarmStart

SPACE = {"pattern": ["1x1", "4x1"], "sparsity": Range(0.0, 0.98), "groups": "layer"}
SIZES = {"sparsity[0]": 128, "sparsity[2]": 256, "sparsity[4]": 256}


def make_space(**changes: Any) -> CandidateFactory:
    return make_factory(build_net(), PruningSpace.parse(SPACE | changes), None)


def make_trial(number: int, cost: float, quality: float, pattern: str = "1x1", **options: Any) -> TrialResult:
    """Make a trial with the same sparsity everywhere, as its cost between 0 and 1 says, or with others."""
    sparsities = options.pop("sparsities", dict.fromkeys(SIZES, round(1 - cost, 6)))
    values = {"pattern": pattern, **sparsities}
    return TrialResult(number=number, values=values, state="complete", cost=cost, quality=quality, **options)


def choose(trials: list[TrialResult], *, by_area: bool = False, **changes: Any) -> dict[str, Any] | None:
    return GapFilling(make_space(**changes), "maximize").choose_values(trials, by_area=by_area)


def get_sparsities(values: dict[str, Any] | None) -> list[float]:
    assert values is not None
    return [values[name] for name in SIZES]


def test_a_pattern_is_tried_where_its_own_front_promises_more() -> None:
    """The neighbors in the gap have another pattern: without this, one lucky trial would decide for all that follow."""
    ends = [make_trial(0, 0.1, 0.1, "4x1"), make_trial(1, 0.5, 0.5, "4x1")]
    better = [make_trial(2, 0.09, 0.0), make_trial(3, 0.6, 0.6)]
    chosen = choose([*ends, *better])
    assert chosen is not None
    assert chosen["pattern"] == "1x1"
    worse = [make_trial(2, 0.09, -0.5), make_trial(3, 1.0, 0.55)]
    chosen = choose([*ends, *worse], by_area=True)
    assert chosen is not None
    assert chosen["pattern"] == "4x1"


def test_the_next_trial_in_a_gap_has_the_other_pattern() -> None:
    trials = [make_trial(0, 0.2, 0.2), make_trial(1, 0.6, 0.6, "4x1")]
    patterns = []
    for number in range(2, 4):
        chosen = choose(trials)
        assert chosen is not None
        patterns.append(chosen["pattern"])
        trials.append(
            make_trial(number, 0.4, 0.1, chosen["pattern"], sparsities={name: chosen[name] for name in SIZES})
        )
    assert set(patterns) == {"1x1", "4x1"}


def test_a_gap_counts_as_smaller_after_trials_that_did_not_reach_the_front() -> None:
    trials = [make_trial(0, 0.1, 0.1), make_trial(1, 0.5, 0.5), make_trial(2, 0.8, 0.8)]
    assert get_sparsities(choose(trials)) == pytest.approx([0.7] * 3)
    sparsities = {"sparsity[0]": 0.1, "sparsity[2]": 0.8, "sparsity[4]": 0.9}
    trials.append(make_trial(3, 0.3, 0.05, sparsities=sparsities))
    assert get_sparsities(choose(trials)) == pytest.approx([0.35] * 3)


def test_the_largest_area_is_where_quality_changes_most() -> None:
    trials = [make_trial(0, 0.1, 0.1), make_trial(1, 0.3, 0.7), make_trial(2, 0.8, 0.8)]
    assert get_sparsities(choose(trials)) == pytest.approx([0.45] * 3)
    assert get_sparsities(choose(trials, by_area=True)) == pytest.approx([0.8] * 3)


def test_proposals_never_repeat_and_end_with_the_space() -> None:
    levels = [0.2, 0.4, 0.6, 0.8]
    trials = [
        replace(make_trial(number, 1 - level, 1 - level), values=dict.fromkeys(SIZES, level))
        for number, level in enumerate((0.2, 0.8))
    ]
    for number in range(2, 40):
        chosen = choose(trials, pattern="1x1", sparsity=levels)
        if chosen is None:
            break
        assert set(get_sparsities(chosen)) <= set(levels)
        assert chosen not in [trial.values for trial in trials]
        trials.append(replace(make_trial(number, 0.5, 0.1), values=chosen))
    assert 4 <= len(trials) < 40


def test_gaps_that_are_not_worth_a_trial_are_left_to_the_sampler() -> None:
    assert choose([make_trial(0, 0.5, 0.5), make_trial(1, 0.505, 0.6)]) is None
    assert choose([make_trial(0, 0.5, 0.5), make_trial(1, 0.52, 0.6)]) is not None
    assert choose([make_trial(0, 0.5, 0.5)]) is None
    assert choose([]) is None


def test_widths_in_the_middle_get_the_settings_that_they_need() -> None:
    space = {"pattern": "1x1", "width": [0.5, 0.75, 1.0], "slim_solver": ["wanda", "osscar"]}
    large = make_trial(0, 0.8, 0.8)
    small = make_trial(1, 0.2, 0.2)
    large.values["width"] = 1.0
    small.values.update(width=0.5, slim_solver="wanda")
    factory = make_space(**space)
    chosen = GapFilling(factory, "maximize").choose_values([large, small], by_area=False)
    assert chosen is not None
    assert list(chosen) == [axis.name for axis in factory.iterate_axes(chosen)]


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
@pytest.mark.parametrize("weights", [(8.0, 1.0, 1.0), (1.0, 1.0, 8.0)])
def test_groups_whose_errors_matter_more_are_pruned_less(weights: tuple[float, ...], direction: str, sign: int) -> None:
    """Losses of quality are weighted sums of errors, and the weights are found from the trials."""

    def measure(sparsities: dict[str, float]) -> tuple[dict[str, float], float]:
        errors = {name: sparsity**3 for name, sparsity in sparsities.items()}
        return errors, -sign * sum(weight * error for weight, error in zip(weights, errors.values(), strict=True))

    settings = [(0.3, 0.3, 0.3), (0.6, 0.6, 0.6), (0.9, 0.9, 0.9), (0.2, 0.6, 0.6), (0.6, 0.2, 0.6), (0.6, 0.6, 0.2)]
    trials = []
    for number, point in enumerate(settings):
        errors, quality = measure(dict(zip(SIZES, point, strict=True)))
        sparsities = dict(zip(SIZES, point, strict=True))
        trials.append(make_trial(number, 1 - point[0], quality, sparsities=sparsities, group_errors=errors))
    factory = make_space(pattern="1x1")
    chosen = choose_sparsities(factory, trials[1].values, (trials[0], trials[2]), trials, sign)
    assert chosen is not None
    pruned = sum(size * chosen[name] for name, size in SIZES.items())
    assert pruned == pytest.approx(0.6 * sum(SIZES.values()), abs=1)
    equal = dict(zip(SIZES, (0.46, 0.635, 0.635), strict=True))  # the smallest sum of errors without weights
    heavy = list(SIZES)[weights.index(8.0)]
    assert chosen[heavy] < equal[heavy] - 0.08
    assert sign * measure(chosen)[1] > sign * measure(dict.fromkeys(SIZES, 0.6))[1]
    assert find_front(trials, direction)


def test_without_errors_of_groups_no_sparsities_are_predicted() -> None:
    trials = [make_trial(0, 0.2, 0.2), make_trial(1, 0.6, 0.6)]
    assert choose_sparsities(make_space(), trials[0].values, trials, trials, 1) is None


def test_equal_qualities_leave_the_errors_as_they_are() -> None:
    errors = {"sparsity[0]": 0.1, "sparsity[2]": 0.1, "sparsity[4]": 0.1}
    trials = [make_trial(number, cost, 0.5, group_errors=errors) for number, cost in enumerate((0.2, 0.4, 0.6))]
    chosen = choose_sparsities(make_space(), trials[0].values, trials[:2], trials, 1)
    assert chosen is not None
    assert all(0 <= sparsity <= 0.98 for sparsity in chosen.values())


def test_a_model_that_is_not_pruned_is_tried_once() -> None:
    points = WarmStart("tpe", make_space(pattern=["1x1", "4x1", "2:4"]), 0, "maximize").points
    dense = [point for point in points if not any(point.get(name, 1.0) for name in SIZES)]
    assert dense == [points[0]]
    assert [point["pattern"] for point in points].count("2:4") == 1
    assert len(points) == 1 + 3 + 3 + 1
