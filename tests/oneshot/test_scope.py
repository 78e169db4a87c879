"""The default scope and the default maximum: no layer is emptied unless the configuration asks for it."""

import logging
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import secateur
from secateur.allocations import Allocation, AllocationTask, Global, Uniform
from secateur.errors import CalibrationError, ConfigError
from secateur.planning import Plan

SIZES = {"0": (8, 64), "1": (64, 40), "2": (40, 12), "3": (12, 16), "4": (16, 4)}
"""Layer → inputs and outputs."""

MODELS = ("torch", "keras")


def make_weights() -> dict[str, npt.NDArray[np.float32]]:
    """Weights (outputs × inputs) with many ties; two layers are so small that a global ranking would empty them."""
    generator = np.random.default_rng(0)
    scales = {"1": 2**-8, "2": 2**-9}
    return {
        name: (generator.integers(1, 9, (outputs, inputs)) / 8 * scales.get(name, 1)).astype("float32")
        for name, (inputs, outputs) in SIZES.items()
    }


def build(kind: str) -> Any:
    weights = make_weights()
    if kind == "torch":
        model = nn.Sequential(*(nn.Linear(*sizes, bias=False) for sizes in SIZES.values()))
        for name, weight in weights.items():
            model.get_submodule(name).weight.data = torch.from_numpy(weight)
        return model
    layers = [keras.layers.Dense(outputs, use_bias=False, name=name) for name, (_, outputs) in SIZES.items()]
    model = keras.Sequential([keras.Input((8,)), *layers])
    for layer in layers:
        layer.kernel.assign(weights[layer.name].T)
    return model


def read_weight(model: Any, name: str) -> npt.NDArray[np.float32]:
    if isinstance(model, nn.Module):
        return model.get_submodule(name).weight.detach().numpy()
    return np.asarray(model.get_layer(name).kernel.value).T


def rank_globally(scores: Mapping[str, npt.NDArray[Any]], total: int, most: Mapping[str, int]) -> dict[str, set[int]]:
    """Prune the lowest scores of all layers one by one; of equal ones, that of the last layer and highest index."""
    names = list(scores)
    order = sorted((score, -names.index(name), -unit) for name in names for unit, score in enumerate(scores[name]))
    pruned: dict[str, set[int]] = {name: set() for name in names}
    for _, layer, unit in order:
        name = names[-layer]
        if total and len(pruned[name]) < most[name]:
            pruned[name].add(-unit)
            total -= 1
    return pruned


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("target", [0.3, 0.5, 0.75])
def test_a_global_ranking_is_exact_within_the_default_maximum(kind: str, target: float) -> None:
    model = build(kind)
    config = {"pattern": "1xchannel", "target_sparsity": target, "pruning_scope": "global"}
    report = secateur.prune(model, config)
    scores = {name: weight.astype(np.float64).mean(1) for name, weight in make_weights().items() if name != "4"}
    units = {name: len(score) for name, score in scores.items()}
    expected = rank_globally(
        scores, round(target * sum(units.values())), {name: int(0.98 * count) for name, count in units.items()}
    )
    for name, pruned in expected.items():
        assert set(np.flatnonzero(~read_weight(model, name).any(axis=1))) == pruned
    assert {layer.name: layer.pruned_units for layer in report.layers} == {k: len(v) for k, v in expected.items()}
    assert max(layer.pruned_units / layer.units for layer in report.layers) <= 0.98
    assert any(layer.pruned_units == int(0.98 * layer.units) for layer in report.layers)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("source", ["mapping", "config", "yaml", "rule"])
def test_one_shot_pruning_is_local_by_default(kind: str, source: str) -> None:
    config: Any = {"pattern": "1xchannel", "target_sparsity": 0.5}
    if source == "rule":
        config |= {"layers": {"1": {"pruning_scope": None, "target_sparsity": 0.5}}}
    elif source != "mapping":
        config = secateur.PruningConfig.from_dict(config)
        assert config.pruning_scope is None
    if source == "yaml":
        config = secateur.PruningConfig.from_yaml(config.to_yaml())
    report = secateur.prune(build(kind), config)
    assert {layer.sparsity for layer in report.layers} == {0.5}


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_scope_in_the_configuration_is_followed(scope: str) -> None:
    config = secateur.PruningConfig(pattern="1xchannel", target_sparsity=0.5, pruning_scope=scope)
    config = secateur.PruningConfig.from_yaml(config.to_yaml())
    shares = {layer.sparsity for layer in secateur.prune(build("torch"), config).layers}
    assert (shares == {0.5}) == (scope == "local")


@pytest.mark.parametrize("kind", MODELS)
def test_a_maximum_of_one_allows_to_empty_layers(kind: str) -> None:
    config = {"pattern": "1xchannel", "target_sparsity": 0.5, "pruning_scope": "global"}
    report = secateur.prune(build(kind), config | {"max_sparsity_ratio_per_op": 1.0})
    assert {layer.name for layer in report.layers if layer.sparsity == 1} == {"1", "2"}


def test_groups_of_n_and_m_are_not_limited() -> None:
    config = {"pattern": "1:64", "pruning_scope": "global", "op_names": ["1"]}
    assert secateur.prune(build("torch"), config).sparsity == 63 / 64


@pytest.mark.parametrize("kind", MODELS)
def test_a_target_beyond_the_maximum_says_what_can_be_reached(kind: str) -> None:
    config = {"pattern": "1xchannel", "target_sparsity": 0.98, "pruning_scope": "global"}
    with pytest.raises(
        ConfigError,
        match=r"it means 129 of 132 units, but with max_sparsity_ratio_per_op=0.98 \(the default of a global ranking\) "
        r"for '0', '1', '2', '3', between 0 and 127 units",
    ):
        secateur.prune(build(kind), config)
    assert secateur.prune(build(kind), config | {"pruning_scope": None}).unit_sparsity > 0.96


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("scope", "target"), [("global", 0.5), ("local", 0.97)])
def test_one_warning_lists_nearly_empty_layers(
    kind: str, scope: str, target: float, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"pattern": "1xchannel", "target_sparsity": target, "pruning_scope": scope}
    report = secateur.prune(build(kind), config)
    nearly_empty = [layer.name for layer in report.layers if layer.sparsity > 0.95]
    assert nearly_empty == (["1"] if scope == "global" else ["0", "1", "2", "3"])
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage().startswith(
        ("1 layer" if scope == "global" else "4 layers") + " lost more than 95 % of the"
    )
    assert all(f"'{name}' (" in record.getMessage() for name in nearly_empty)
    assert ("pruning_scope='local'" in record.getMessage()) == (scope == "global")  # no advice to do what was done


def test_no_warning_without_nearly_empty_layers(caplog: pytest.LogCaptureFixture) -> None:
    secateur.prune(build("torch"), {"pattern": "1x1", "target_sparsity": 0.95})
    assert not caplog.records


def make_plan(**settings: Any) -> Plan:
    return secateur.plan(build("torch"), {"pattern": "1xchannel", "target_sparsity": 0.5} | settings)


def get_ranges(plan: Plan) -> dict[str, tuple[float, float]]:
    return {layer.name: layer.sparsity_range for layer in plan.layers if layer.is_pruned}


def test_a_plan_shows_the_range_of_each_layer() -> None:
    expected = {"0": (1 / 64, 62 / 64), "1": (0.0, 39 / 40), "2": (0.0, 11 / 12), "3": (0.0, 15 / 16)}
    assert get_ranges(make_plan()) == get_ranges(make_plan(pruning_scope="global")) == expected
    assert get_ranges(make_plan(pruning_scope="local")) == dict.fromkeys(expected, (0.5, 0.5))
    assert get_ranges(make_plan(pattern="2:4", target_sparsity=None)) == dict.fromkeys(expected, (0.5, 0.5))
    bounds = {"min_sparsity_ratio_per_op": 0.25, "max_sparsity_ratio_per_op": 0.75}
    assert get_ranges(make_plan(**bounds))["0"] == (0.25, 0.75)
    # 99 of 132 units go, and the other layers can lose 65 at most.
    assert get_ranges(make_plan(target_sparsity=0.75))["0"] == ((99 - 65) / 64, 62 / 64)
    lines = str(make_plan()).splitlines()
    assert "range" in lines[2]
    assert "1.6%–96.9%" in lines[4]
    assert "0%–97.5%" in lines[5]
    assert any("Without pruning_scope, secateur.prune ranks each layer separately" in line for line in lines)
    assert "range" not in str(make_plan(pruning_scope="local"))  # the column would repeat the target
    assert "secateur.prune" not in str(make_plan(pruning_scope="local"))


def test_ranges_hold() -> None:
    for target in (0.3, 0.5, 0.75):
        ranges = get_ranges(make_plan(pruning_scope="global", target_sparsity=target))
        config = {"pattern": "1xchannel", "target_sparsity": target, "pruning_scope": "global"}
        for layer in secateur.prune(build("torch"), config).layers:
            low, high = ranges[layer.name]
            assert low <= layer.sparsity <= high


@pytest.mark.parametrize("allocation", ["global", "owl"])
def test_allocations_keep_the_default_maximum(allocation: str) -> None:
    batches = [torch.randn(16, 8, generator=torch.Generator().manual_seed(0))]
    config = {"pattern": "1xchannel", "target_sparsity": 0.75}
    report = secateur.prune(build("torch"), config, calibration=batches, solver="wanda", allocation=allocation)
    assert max(layer.sparsity for layer in report.layers) <= 0.98


@pytest.mark.parametrize(("name", "allocation"), [("uniform", Uniform()), ("global", Global())])
@pytest.mark.parametrize("options", [{}, {"loss": lambda output, _: output.sum(), "calibration": [torch.ones(4, 8)]}])
def test_allocations_by_name_and_as_objects_prune_the_same(name: str, allocation: Any, options: dict[str, Any]) -> None:
    config = {"pattern": "1x1", "target_sparsity": 0.5, "criterion": "taylor" if options else "magnitude"}
    reports = [secateur.prune(build("torch"), config, allocation=value, **options) for value in (name, allocation)]
    first, second = [[layer.pruned_units for layer in report.layers] for report in reports]
    assert first == second
    assert (len({layer.sparsity for layer in reports[0].layers}) == 1) == (name == "uniform")


def test_an_allocation_that_would_be_ignored_is_refused() -> None:
    class Own(Allocation):
        needs = "nothing"

        def counts(self, task: AllocationTask) -> dict[str, int]:
            return dict(task.lower)

    with pytest.raises(CalibrationError, match="allocation Own is used with calibration data only"):
        secateur.prune(build("torch"), {"pattern": "1x1", "target_sparsity": 0.5}, allocation=Own())
