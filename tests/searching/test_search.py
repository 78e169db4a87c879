"""Tests of searches: what is tried, what is measured, and what happens to trials without a result."""

import copy
import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import CalibrationError, ConfigError, MissingPackageError, UnknownNameError, UnsupportedModelError
from secateur.searching import COSTS, EarlyStop, PruningSpace, Range, SearchReport
from secateur.searching.model_space import make_factory
from secateur.searching.warm_start import WarmStart

pytest.importorskip("optuna")

from installed_packages import hide_packages
from searching.nets import INPUTS, SPACE, build_net, search_net, similarity


def test_the_model_does_not_change_and_modes_stay() -> None:
    model = build_net().train()
    before = copy.deepcopy(model.state_dict())

    def spoil(pruned: nn.Module) -> float:
        value = similarity(pruned.eval())
        nn.init.ones_(pruned[0].weight)
        return value

    random = torch.random.get_rng_state()
    secateur.search(model, spoil, {"pattern": "2:4"}, trials=1)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_the_same_seed_gives_the_same_trials_and_another_one_others() -> None:
    space = {"pattern": ["1x1", "4x1"], "sparsity": Range(0.1, 0.9)}
    one, again, other = (search_net(space=space, trials=13, seed=seed, calibration=None) for seed in (3, 3, 4))
    assert list(one.trials) != list(other.trials)
    for first, second in zip(one.trials, again.trials, strict=True):
        assert (first.values, first.cost, first.quality) == (second.values, second.cost, second.quality)
    assert len({str(trial.values) for trial in (*one.trials, *other.trials)}) == 26


def test_entries_of_the_front_are_ready_to_prune(finished_search: SearchReport) -> None:
    for trial in finished_search.front:
        model = build_net()
        secateur.prune(model, trial.config, calibration=[INPUTS], **trial.options)
        assert similarity(model) == pytest.approx(trial.quality, abs=1e-9)
        assert sum(int(weight.count_nonzero()) for weight in model.parameters()) == trial.cost
        assert secateur.PruningConfig.from_yaml(trial.config.to_yaml()) == trial.config


def test_the_front_is_what_no_trial_dominates(finished_search: SearchReport) -> None:
    def dominates(one: Any, other: Any) -> bool:
        return (one.cost <= other.cost and one.quality >= other.quality) and (
            one.cost < other.cost or one.quality > other.quality or one.number < other.number
        )

    trials = [trial for trial in finished_search.trials if trial.state == "complete"]
    expected = {trial.number for trial in trials if not any(dominates(other, trial) for other in trials)}
    assert {trial.number for trial in finished_search.front} == expected
    assert [trial.cost for trial in finished_search.front] == sorted(trial.cost for trial in finished_search.front)


def test_a_search_beats_the_same_sparsity_everywhere() -> None:
    """Layers differ: the first one has few weights, and all others depend on it.

    A front has gaps, so at one size the next smaller trial may be too small to win.
    """
    model = build_net()
    with torch.no_grad():
        model[2].weight[8:] *= 0.01
        model[4].weight[:, 8:] *= 0.01
    expected = model(INPUTS).detach()

    def closeness(pruned: nn.Module) -> float:
        return -float((pruned(INPUTS) - expected).square().mean().detach())

    space = {"pattern": "1x1", "sparsity": Range(0.2, 0.7, 0.1)}
    uniform = secateur.search(model, closeness, space, calibration=[INPUTS], sampler="grid")
    space = {"pattern": "1x1", "sparsity": Range(0.0, 0.98), "groups": "layer"}
    searched = secateur.search(model, closeness, space, calibration=[INPUTS], trials=30)
    best = [max(other.quality for other in searched.front if other.cost <= trial.cost) for trial in uniform.front]
    assert len(best) == 6
    assert sum(quality > trial.quality for quality, trial in zip(best, uniform.front, strict=True)) >= 5


@pytest.mark.parametrize("better", ["magnitude", "sparsegpt"])
def test_a_trial_in_a_gap_of_the_front_uses_the_method_of_the_better_end(better: str) -> None:
    space = {"pattern": "1x1", "sparsity": Range(0.0, 0.9), "solver": ["magnitude", "sparsegpt"], "groups": "layer"}
    report = search_net(space=space, trials=4)
    sparse, dense = (next(trial for trial in report.trials if trial.number == number) for number in (3, 0))
    other = {"magnitude": "sparsegpt", "sparsegpt": "magnitude"}[better]
    ends = [
        replace(sparse, values=sparse.values | {"solver": other}, quality=0.1),
        replace(dense, values=dense.values | {"solver": better}, quality=0.9),
    ]
    factory = make_factory(build_net(), PruningSpace.parse(space), None)
    chosen = WarmStart("tpe", factory, 0, "maximize").choose_values(4, ends)
    assert chosen is not None
    assert chosen["solver"] == better


def test_a_grid_tries_every_candidate_once() -> None:
    space = {
        "pattern": ["1x1", "2:4"],
        "sparsity": [0.5, 0.25],
        "solver": ["magnitude", secateur.solvers.Wanda()],
        "refine": [None, "pcg"],
    }
    report = search_net(space=space, sampler="grid")
    tried = [tuple(trial.values.get(name) for name in space) for trial in report.trials]
    patterns = [("1x1", 0.25), ("1x1", 0.5), ("2:4", None)]
    expected = [
        (*pattern, solver, refine)
        for pattern, solver, refine in itertools.product(
            patterns, ("magnitude", "Wanda(by_share=False)"), ("none", "pcg")
        )
    ]
    assert sorted(tried, key=str) == sorted(expected, key=str)
    assert tried != sorted(tried, key=str)  # in random order, so that the first ones tell something
    assert {trial.options["refine"] for trial in report.trials} == {(), ("pcg",)}
    assert {type(trial.options["solver"]).__name__ for trial in report.trials} == {"str", "Wanda"}


def test_groups_have_their_own_pattern_and_sparsity() -> None:
    groups = {"0": {"pattern": ["2:4"]}, "2|none": {"sparsity": [0.25]}}
    space = {"pattern": "1x1", "sparsity": 0.75, "groups": groups}
    report = search_net(space=space, sampler="grid", config={"layers": {"4": {"target_sparsity": 0.5}}})
    (trial,) = report.trials
    assert trial.values == {"sparsity": 0.75, "sparsity[2|none]": 0.25}
    pruned = secateur.prune(build_net(), trial.config)
    assert {layer.name: (layer.pattern, round(layer.sparsity, 2)) for layer in pruned.layers} == {
        "0": ("2:4", 0.5),
        "2": ("1x1", 0.25),
        "4": ("1x1", 0.5),
    }


def test_widths_are_slimmed_before_patterns_are_pruned() -> None:
    space = {"width": [0.5, 1.0], "pattern": "2:4"}
    report = search_net(space=space, sampler="grid", config={"granularity": 4})
    narrow = next(trial for trial in report.trials if trial.values["width"] == 0.5)
    wide = next(trial for trial in report.trials if trial.values["width"] == 1.0)
    assert narrow.cost < 0.6 * wide.cost
    assert wide.slim_config is None
    model = build_net()
    secateur.slim(model, narrow.slim_config, calibration=[INPUTS], **narrow.slim_options)
    secateur.prune(model, narrow.config, calibration=[INPUTS], **narrow.options)
    assert [model[index].out_features for index in (0, 2, 4, 6)] == [8, 8, 8, 4]
    assert similarity(model) == pytest.approx(narrow.quality, abs=1e-9)


def test_widths_alone() -> None:
    report = search_net(space={"width": [0.5, 0.75]}, sampler="grid")
    assert [trial.config for trial in report.trials] == [None, None]
    assert {trial.slim_config.target_sparsity for trial in report.trials} == {0.5, 0.25}


def test_each_cost_is_what_it_says(tmp_path: Any) -> None:
    def measure(cost: Any) -> Any:
        return search_net(space={"pattern": "2:4"}, cost=cost, trials=1, example_inputs=INPUTS[:2])

    model = build_net()
    secateur.prune(model, "2:4", calibration=[INPUTS])
    nonzero = sum(int(weight.count_nonzero()) for weight in model.parameters())
    assert measure("parameters").trials[0].cost == nonzero
    assert measure("bytes").trials[0].cost == secateur.save(model, tmp_path / "saved").packed_bytes
    flops = measure("flops")
    assert flops.dense.cost == 2 * 2 * (8 * 16 + 2 * 16 * 16 + 16 * 4)
    assert flops.trials[0].cost == 2 * 2 * (8 * 16 / 2 + 16 * 16 + 16 * 4)

    def count_modules(pruned: nn.Module) -> int:
        return len(pruned)

    own = measure(count_modules)
    assert (own.cost, own.dense.cost, own.trials[0].cost) == ("count_modules", 7, 7)
    assert set(COSTS) == {"parameters", "bytes", "flops", "latency"}


def test_latency_is_that_of_the_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.searching import pytorch as leaf

    compiled = []
    monkeypatch.setattr(leaf, "SECONDS", 0.01)
    monkeypatch.setattr(leaf, "compile_model", lambda model, inputs: compiled.append((model, inputs)))
    report = search_net(space={"pattern": "2:4"}, cost="latency", trials=1)
    ((model, inputs),) = compiled
    assert float((model[2].weight == 0).float().mean()) == 0.5
    assert inputs[0].shape == INPUTS.shape
    assert 0.2 < report.trials[0].cost / report.dense.cost < 5


def test_a_candidate_that_was_tried_before_is_not_evaluated_again() -> None:
    calls = []

    def count(model: nn.Module) -> float:
        calls.append(0)
        return similarity(model)

    report = search_net(count, space={"pattern": "1x1", "sparsity": [0.25, 0.5]}, sampler="random", trials=8)
    assert len(calls) == 2 + 2
    twins = [trial for trial in report.trials if trial.repeats is not None]
    assert len(twins) == 6
    assert all(trial.quality == report.trials[trial.repeats].quality for trial in twins)


def fail_above(limit: float) -> Callable[[nn.Module], float]:
    """An objective that fails for models in which more than a share of the weights is zero."""

    def objective(model: nn.Module) -> float:
        if float((model[2].weight == 0).float().mean()) > limit:
            raise ValueError("too\nsparse")
        return similarity(model)

    return objective


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    space = {"pattern": ["1x1", "3:5"], "sparsity": [0.25, 0.5, 0.75]}
    report = search_net(fail_above(0.6), space={**space, "pattern": "1x1"}, sampler="grid")
    failed = [trial for trial in report.trials if trial.state == "failed"]
    assert [(trial.values["sparsity"], trial.reason) for trial in failed] == [(0.75, "ValueError: too\\nsparse")]
    assert failed[0].quality is None
    assert failed[0].number not in {trial.number for trial in report.front}
    assert len(report.front) == 2
    assert [record.message for record in caplog.records] == [
        f"1 trial failed:\n  {failed[0].number}: {failed[0].reason}"
    ]
    assert "1 failed" in str(report)


def test_if_all_trials_fail_the_error_says_why() -> None:
    with pytest.raises(ConfigError, match=r"none of 2 trials is complete.*\n  trial 0, trial 1: ValueError: too"):
        search_net(fail_above(0.1), space={"pattern": "1x1", "sparsity": [0.25, 0.5]}, sampler="grid")


def test_an_objective_that_fails_for_the_dense_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective must accept the model.*found ValueError: too\\nsparse for the"):
        search_net(fail_above(-1.0), trials=2)


def test_an_interruption_is_no_failure() -> None:
    def interrupt(model: nn.Module) -> float:
        if (model[2].weight == 0).any():
            raise KeyboardInterrupt
        return similarity(model)

    with pytest.raises(KeyboardInterrupt):
        search_net(interrupt, trials=2)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (math.nan, "objective must return a finite number, found nan"),
        (-math.inf, "objective must return a finite number, found -inf"),
        ("0.5 %", "objective must return a number, found '0.5 %'"),
        (None, "objective must return a number, found None"),
    ],
)
def test_values_that_are_no_numbers(value: Any, found: str) -> None:
    with pytest.raises(ConfigError, match=f"{found}.*dense model"):
        search_net(lambda _: value, trials=1)

    def objective(model: nn.Module) -> Any:
        return value if float((model[2].weight == 0).float().mean()) > 0.3 else similarity(model)

    report = search_net(objective, space={"pattern": "1x1", "sparsity": [0.25, 0.5]}, sampler="grid")
    assert [trial.reason for trial in report.trials if trial.state == "failed"] == [f"ScoreError: {found}."]


def test_an_objective_that_is_not_deterministic_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    noise = itertools.count()
    report = search_net(lambda model: similarity(model) + next(noise), space={"pattern": "2:4"}, trials=1)
    assert report.dense.noise == 1
    assert "<lambda> is not deterministic: it returned" in caplog.text
    assert any("is not deterministic" in line for line in report.summarize().warnings)


def test_an_objective_with_random_numbers_is_deterministic() -> None:
    report = search_net(lambda model: similarity(model) + float(torch.rand(())), space={"pattern": "2:4"}, trials=1)
    assert report.dense.noise == 0


def test_trials_whose_layers_lost_too_much_are_pruned() -> None:
    space = {"pattern": "1x1", "sparsity": [0.1, 0.95]}
    report = search_net(space=space, sampler="grid", stop=EarlyStop(max_error=0.3))
    states = {trial.values["sparsity"]: trial for trial in report.trials}
    assert (states[0.1].state, states[0.95].state) == ("complete", "pruned")
    assert states[0.95].error > 0.3 > states[0.1].error
    assert states[0.95].quality is None
    assert "above 0.3" in states[0.95].reason


def test_trials_that_begin_worse_than_cheaper_ones_are_pruned() -> None:
    calls = []

    def objective(model: nn.Module) -> float:
        calls.append(0)
        return similarity(model)

    space = {"pattern": ["1x1", "16x1"], "sparsity": Range(0.3, 0.6)}
    options = {"space": space, "sampler": "random", "trials": 16}
    report = search_net(objective, stop=EarlyStop(screen=similarity), **options)
    pruned = [trial for trial in report.trials if trial.state == "pruned"]
    assert pruned
    assert len(calls) == 2 + len(report.trials) - len(pruned)
    for trial in report.trials:
        earlier = report.trials[: trial.number]
        better = [other for other in earlier if other.cost <= trial.cost and other.screen > trial.screen]
        assert (trial.state == "pruned") == (len(better) >= 3)
    full = {trial.number for trial in search_net(**options).front}
    assert full.isdisjoint({trial.number for trial in pruned})


@pytest.mark.parametrize(
    ("options", "error", "found"),
    [
        ({"objective": 3}, ConfigError, "objective must be a function of a pruned model.*found 3"),
        ({"cost": "byte"}, UnknownNameError, r"cost must be .*found 'byte'\. Did you mean 'bytes'"),
        ({"cost": "latency", "calibration": None}, CalibrationError, "'latency' needs example_inputs or calibration"),
        ({"direction": "up"}, UnknownNameError, "direction must be 'maximize' or 'minimize', found 'up'"),
        ({"trials": 0}, ConfigError, "trials must be a whole number of at least 1, found 0"),
        ({"sampler": "tps"}, UnknownNameError, r"sampler must be .*found 'tps'\. Did you mean 'tpe'"),
        ({"sampler": "grid"}, ConfigError, r"'sparsity\[0\]' is a range without a step"),
        (
            {"sampler": "grid", "space": {**SPACE, "sparsity": Range(0.0, 1.0, 0.001)}},
            ConfigError,
            "more than 100,000 candidates",
        ),
        ({"stop": EarlyStop(max_error=0.1), "calibration": None}, CalibrationError, "max_error needs calibration"),
        ({"config": {"pattern": "4x1"}}, ConfigError, "config must leave pattern to the space, found '4x1'"),
        ({"space": {"pattern": "64x64", "sparsity": 0.5}}, secateur.errors.LayerError, "No layer of the model can be"),
    ],
)
def test_arguments_that_contradict_each_other(options: dict[str, Any], error: type[Exception], found: str) -> None:
    with pytest.raises(error, match=found):
        search_net(**options)


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_packages(monkeypatch, "optuna")
    monkeypatch.setattr("secateur._packages.is_installed", lambda package: package != "optuna")
    with pytest.raises(MissingPackageError, match=r"needs the package 'optuna'.*\[search\]"):
        search_net(trials=1)


def test_models_that_are_not_torch_modules_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"must be a torch\.nn\.Module"):
        secateur.search(3, similarity, SPACE)


def test_progress_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("secateur.searching.ProgressDisplay.begin", lambda _, step, total: shown.append((step, total)))
    monkeypatch.setattr("secateur.searching.ProgressDisplay.advance", lambda _, step: shown.append(step))
    space = {"pattern": "1x1", "sparsity": [0.25, 0.5]}
    search_net(space=space, sampler="grid", trials=9, progress=True)
    assert shown == [("Searching", 2), "Trial 1 of 2", "Trial 2 of 2"]


def test_warnings_of_single_trials_are_silent_and_logging_is_as_before(caplog: pytest.LogCaptureFixture) -> None:
    pruning = logging.getLogger("secateur.results")
    before = pruning.level
    search_net(space={"pattern": "1x1", "sparsity": 0.97}, trials=1)
    assert caplog.records == []
    assert pruning.level == before
