"""Tests of trials that decide how much of each layer is pruned."""

import copy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.allocations import ReportedShares
from secateur.analysis import assign_targets
from secateur.errors import ConfigError
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.planning.share_counts import count_by_shares
from secateur.planning.unit_bounds import UnitBounds
from secateur.results import LayerRecord, LayerShares
from secateur.searching import SearchReport, TrialResult

pytest.importorskip("optuna")

from searching.nets import INPUTS, build_net, search_net

WITH_DATA = {"calibration": [INPUTS], "solver": "wanda"}


def choose_trial(report: SearchReport, pattern: str = "1x1") -> TrialResult:
    """Return a trial in which layers have different sparsities."""
    fitting = [trial for trial in report.trials if trial.values["pattern"] == pattern and (trial.sparsity or 0) > 0.4]
    return max(fitting, key=lambda trial: len({layer.sparsity for layer in trial.layers}))


def count_units(report: Any) -> dict[str, int]:
    return {layer.name: layer.pruned_units for layer in report.layers}


def get_target(trial: TrialResult) -> float:
    """Return the target at which all layers lose as much as in the trial."""
    return sum(count_units(trial).values()) / sum(layer.units or 0 for layer in trial.layers)


@pytest.mark.parametrize("options", [{}, WITH_DATA], ids=["weights", "data"])
@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
def test_at_its_own_total_layers_lose_what_they_lost_in_the_trial(
    pattern: str, options: dict[str, Any], finished_search: SearchReport
) -> None:
    trial = choose_trial(finished_search, pattern)
    model = build_net()
    config = {"pattern": pattern, "target_sparsity": get_target(trial)}
    report = secateur.prune(model, config, allocation=trial, **options)
    assert count_units(report) == count_units(trial)
    assert len(set(count_units(trial).values())) > 1
    assert {name: int((model.get_submodule(name).weight == 0).sum()) for name in count_units(trial)} == {
        layer.name: round((layer.sparsity or 0) * (layer.weights or 0)) for layer in trial.layers
    }
    assert report.configs[0].target_sparsity == get_target(trial)


def test_groups_of_an_nm_pattern_are_counted_like_their_pruned_weights() -> None:
    config = {"pattern": "2:4", "target_sparsity": 0.3, "pruning_scope": "global"}
    before = secateur.prune(build_net(), config)
    assert len({layer.sparsity for layer in before.layers}) > 1
    shares = LayerShares(origin="a run", layers=tuple(layer.record() for layer in before.layers))
    pattern = secateur.plan(build_net(), config).patterns[0]
    counts = count_by_shares(shares, pattern, UnitBounds.read(pattern))
    assert {name: 2 * count for name, count in counts.items()} == count_units(before)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.85])
def test_other_targets_are_met_in_the_same_proportions(target: float, finished_search: SearchReport) -> None:
    trial = choose_trial(finished_search)
    report = secateur.prune(build_net(), {"pattern": "1x1", "target_sparsity": target}, allocation=trial)
    assert sum(count_units(report).values()) == round(target * sum(layer.units for layer in report.layers))
    share = (target / get_target(trial), (1 - target) / (1 - get_target(trial)))
    for layer, before in zip(report.layers, trial.layers, strict=True):
        assert before.sparsity is not None
        expected = share[0] * before.sparsity if share[0] < 1 else 1 - share[1] * (1 - before.sparsity)
        assert layer.sparsity == pytest.approx(expected, abs=1.01 / layer.units)


def test_layers_can_lose_more_than_the_default_of_a_global_ranking() -> None:
    sparsities = {"0": 0.25, "2": 0.99, "4": 0.5}
    groups = {name: {"sparsity": sparsity} for name, sparsity in sparsities.items()}
    found = search_net(space={"pattern": "1x1", "sparsity": 0.5, "groups": groups}, sampler="grid", trials=1)
    config, expected = {"pattern": "1x1", "target_sparsity": get_target(found.trials[0])}, count_units(found.trials[0])
    assert expected == {name: round(sparsities[name] * count) for name, count in {"0": 128, "2": 256, "4": 256}.items()}
    assert count_units(secateur.prune(build_net(), config, allocation=found)) == expected
    assert count_units(secateur.prune(build_net(), config, allocation=found, **WITH_DATA)) == expected
    assigned = assign_targets(build_net(), config, found)
    assert {name: rule["target_sparsity"] for name, rule in assigned.layers.items()} == {
        layer.name: (layer.pruned_units or 0) / (layer.units or 1) for layer in found.trials[0].layers
    }


def test_bounds_of_layers_hold(finished_search: SearchReport) -> None:
    config = {"pattern": "1x1", "target_sparsity": 0.7, "max_sparsity_ratio_per_op": 0.72}
    report = secateur.prune(build_net(), config, allocation=choose_trial(finished_search))
    assert report.sparsity == pytest.approx(0.7, abs=1e-3)
    assert max(layer.sparsity for layer in report.layers) <= 0.72


LAYERS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=5)


@settings(max_examples=60)
@given(layers=LAYERS, bounds=st.tuples(st.integers(0, 3), st.integers(7, 10)), where=st.integers(0, 10))
def test_counts_meet_the_total_within_the_bounds(
    layers: list[tuple[int, int, int]], bounds: tuple[int, int], where: int
) -> None:
    names = [str(index) for index in range(len(layers))]
    units = {name: 2 * size for name, (size, _, _) in zip(names, layers, strict=True)}
    lower, upper = ({name: count * bound // 10 for name, count in units.items()} for bound in bounds)
    before = {name: units[name] * share // 10 for name, (_, share, _) in zip(names, layers, strict=True)}
    records = [LayerRecord(name=name, units=units[name], pruned_units=before[name], pattern="1x1") for name in names]
    shares = LayerShares(origin="a trial", layers=tuple(records))
    pattern: Any = SimpleNamespace(budget=SimpleNamespace(units=units, unit_share=Fraction(1)))
    low, high = sum(lower.values()), sum(upper.values())
    previous = lower
    for total in sorted({low, low + (high - low) * where // 10, high}):
        counts = count_by_shares(shares, pattern, UnitBounds(lower=lower, upper=upper, total=total))
        assert sum(counts.values()) == total
        assert all(lower[name] <= counts[name] <= upper[name] for name in names)
        assert all(counts[name] >= previous[name] for name in names)
        previous = counts
    if all(lower[name] <= before[name] <= upper[name] for name in names):
        bound = UnitBounds(lower=lower, upper=upper, total=sum(before.values()))
        assert count_by_shares(shares, pattern, bound) == before


def test_groups_of_n_of_m_are_counted_by_their_share() -> None:
    space = {"pattern": "1x1", "sparsity": 0.5, "groups": {"[02]": {"pattern": "2:4"}}}
    found = search_net(space=space, sampler="grid", trials=1)
    config = {"pattern": "2:4", "target_sparsity": 0.25, "op_names": ["[02]"]}
    report = secateur.prune(build_net(), config, allocation=found)  # its front has one trial
    assert [layer.sparsity for layer in report.layers] == [0.25, 0.25]
    with pytest.raises(ConfigError, match=r"must have pruned '2:4' in layer '4', found '1x1' only\. Search for"):
        secateur.prune(build_net(), {"pattern": "2:4", "target_sparsity": 0.25}, allocation=found)


def test_targets_can_be_assigned_for_training(finished_search: SearchReport) -> None:
    trial, model = choose_trial(finished_search, "4x1"), build_net()
    config = {"pattern": "4x1", "target_sparsity": get_target(trial)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = secateur.prepare(model, assign_targets(build_net(), config, trial), optimizer=optimizer)
    model(INPUTS).sum().backward()
    optimizer.step()
    assert count_units(pruner.finalize()) == count_units(trial)


def test_a_search_that_resumes_gives_the_same_allocations(tmp_path: Path) -> None:
    first, resumed = (search_net(storage=tmp_path / "search.log", trials=3) for _ in range(2))
    assert [trial.get_layer_shares() for trial in first.trials] == [
        trial.get_layer_shares() for trial in resumed.trials
    ]
    assert all(len(layer.sha256 or "") == 64 for trial in resumed.trials for layer in trial.layers)


def test_a_front_of_several_trials_needs_a_choice(finished_search: SearchReport) -> None:
    with pytest.raises(ConfigError, match=r"must be one trial, and the front .* allocation=report\.best\(max_cost="):
        secateur.prune(build_net(), {"pattern": "1x1", "target_sparsity": 0.5}, allocation=finished_search)


def make_other_model(change: str) -> nn.Module:
    model = build_net()
    if change == "weights":
        with torch.no_grad():
            model[2].weight[0, 0] += 1
    elif change == "shape":
        model[0] = nn.Linear(4, 16)
    else:
        model = nn.Sequential(*copy.deepcopy(list(model)), nn.Linear(4, 4))
    return model


@pytest.mark.parametrize("options", [{}, WITH_DATA], ids=["weights", "data"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weights", r"trial \d+ of the search, passed as allocation, is of a model with other weights in '2'\. Search"),
        ("shape", r"is of another model: layer '0' has a weight of shape \(16, 8\) there, and \(16, 4\) here"),
        ("layers", r"must cover every layer to prune, and it lacks '6'"),
    ],
)
def test_another_model_is_refused(
    change: str, message: str, options: dict[str, Any], finished_search: SearchReport
) -> None:
    model = make_other_model(change)
    if change == "shape":
        options = {**options, **({"calibration": [INPUTS[:, :4]]} if options else {})}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        secateur.prune(
            model, {"pattern": "1x1", "target_sparsity": 0.5}, allocation=choose_trial(finished_search), **options
        )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_trials_that_do_not_tell_how_much_each_layer_loses_are_refused(finished_search: SearchReport) -> None:
    config = {"pattern": "1x1", "target_sparsity": 0.5}
    failed = replace(finished_search.trials[0], state="failed", reason="ValueError: no", layers=())
    with pytest.raises(ConfigError, match=r"trial 0 must have pruned layers .* has not: ValueError: no"):
        secateur.prune(build_net(), config, allocation=failed)
    slimmed = search_net(space={"width": 0.5, "pattern": "1x1", "sparsity": 0.5}, trials=1)
    with pytest.raises(ConfigError, match=r"trial 0 slims the model to a width of 0\.5, .* trial\.slim_config"):
        secateur.prune(build_net(), config, allocation=slimmed)
    with pytest.raises(ConfigError, match=r"allocation must be 'uniform' or 'global' .* found ReportedShares"):
        secateur.slim(
            build_net(),
            {"pattern": "channels", "target_sparsity": 0.5},
            calibration=[INPUTS],
            allocation=choose_trial(finished_search),
        )


def test_runs_with_other_trials_are_told_apart(finished_search: SearchReport) -> None:
    one, other = (
        Recipe.from_names("wanda", (), replace(finished_search.trials[number], number=0)) for number in (2, 4)
    )
    assert str(one) != str(other)
    assert isinstance(one.allocation, ReportedShares)
    assert one.allocation.origin == "trial 0 of the search"
