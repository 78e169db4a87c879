"""Test allocations: exact totals, bounds, the order of layers, and direct transcriptions of their formulas."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.allocations import (
    ALLOCATIONS,
    OWL,
    Allocation,
    AllocationTask,
    Global,
    Sensitivity,
    Uniform,
    allocate,
    register_allocation,
)
from secateur.allocations.owl import apportion
from secateur.allocations.sensitivity import minimize_error
from secateur.errors import CalibrationError, ConfigError, UnknownNameError, UnsupportedModelError
from secateur.frameworks import WeightView
from secateur.patterns import BasePattern, Units, get_pattern, register_pattern
from secateur.solvers import Problem
from secateur.solvers.problem import LayerRows
from secateur.solvers.selector import Selector

Arrays = Mapping[str, np.ndarray]

ALL = sorted(ALLOCATIONS)
FEATURES = 8


def build_layer(weight: np.ndarray) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = torch.from_numpy(weight.astype("float32"))
    return linear


def build_task(weights: Arrays, inputs: Arrays, parts: Sequence[Sequence[str]] | None = None, **config: Any) -> Any:
    """Build a task from the weights and inputs of layers, and the names of the layers in each part of the model."""
    pattern = get_pattern({"pattern": "1x1"} | config, {name: build_layer(weight) for name, weight in weights.items()})

    def problem(name: str) -> Problem:
        weight, rows = torch.from_numpy(weights[name].astype("float32")), torch.from_numpy(inputs[name]).float()
        outputs, features = weight.shape
        view = WeightView(shape=(outputs, 1, features), output_axes=(0,), kernel_axes=(1,), input_axes=(2,))
        selector = Selector(pattern.pattern, view, 0)
        part = LayerRows(name=name, rows=(0, outputs), selector=selector, criterion=torch.abs)
        gram, norms = (rows.T @ rows)[None], rows.norm(dim=0)[None]
        return Problem(weight=weight[None], norms=norms, gram=gram, layers=[part])

    def iterate_problems() -> Iterator[tuple[str, list[Problem]]]:
        for number, names in enumerate(parts or [[name] for name in weights]):
            yield f"part {number}", [problem(name) for name in names]

    return AllocationTask(pattern=pattern, iterate_problems=iterate_problems)


def random_layers(seed: int, rows: Sequence[int]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    names = [f"fc{index}" for index in range(len(rows))]
    weights = {name: generator.normal(size=(count, FEATURES)) for name, count in zip(names, rows, strict=True)}
    inputs = {name: generator.normal(size=(32, FEATURES)) * generator.uniform(0.1, 9, FEATURES) for name in names}
    return weights, inputs


def build_model() -> nn.Sequential:
    """Build three blocks in a stack, and an output layer that stays dense."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(), nn.Linear(12, FEATURES)) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Linear(FEATURES, 3))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, FEATURES, generator=generator) for _ in range(3)]


def prune(allocation: Any, model: nn.Module | None = None, solver: str = "wanda", **config: Any) -> dict[str, int]:
    """Prune a model, and return layer → number of pruned units."""
    report = secateur.prune(
        model or build_model(), {"pattern": "1x1"} | config, calibration=batches(), solver=solver, allocation=allocation
    )
    return {row.name: row.pruned_units for row in report.layers}


# All allocations.


@settings(max_examples=25)
@given(
    rows=st.lists(st.sampled_from([8, 16, 40]), min_size=2, max_size=4),
    pattern=st.sampled_from(["1x1", "4x1", "1x4", "2:4"]),
    low=st.sampled_from([0.0, 0.1, 0.25]),
    target=st.sampled_from([0.25, 0.3, 0.41]),
    high=st.sampled_from([0.45, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
@pytest.mark.parametrize("name", ALL)
def test_totals_are_exact_and_within_bounds(
    name: str, rows: list[int], pattern: str, low: float, target: float, high: float, seed: int
) -> None:
    bounds = {"min_sparsity_ratio_per_op": low, "max_sparsity_ratio_per_op": high}
    task = build_task(*random_layers(seed, rows), pattern=pattern, target_sparsity=target, **bounds)
    counts = allocate(ALLOCATIONS[name](), task)
    per_unit = {"1x1": 1, "4x1": 4, "1x4": 4, "2:4": 2}[pattern]
    for layer_name, count in counts.items():
        weights = task.pattern.modules[layer_name].weight.numel()
        assert low * weights <= count * per_unit <= high * weights
    expected = target * sum(rows) * FEATURES / per_unit
    rounded_separately = len(rows) if name == "uniform" else 1
    assert abs(sum(counts.values()) - expected) <= 0.5 * rounded_separately
    assert list(counts) == list(task.units)
    assert counts == allocate(ALLOCATIONS[name](), task)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("solver", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_a_run_prunes_the_allocated_counts(name: str, solver: str, pattern: str) -> None:
    report = secateur.prune(
        build_model(),
        {"pattern": pattern, "target_sparsity": 0.25, "max_sparsity_ratio_per_op": 0.375},
        calibration=batches(),
        solver=solver,
        allocation=name,
    )
    assert report.sparsity == 0.25
    assert max(row.sparsity for row in report.layers) <= 0.375


@pytest.mark.parametrize("name", ALL)
def test_allocating_does_not_change_the_model(name: str) -> None:
    model, before = build_model(), build_model().state_dict()

    @register_allocation("checking")
    class Checking(Allocation):
        needs = ALLOCATIONS[name].needs

        def counts(self, task: AllocationTask) -> dict[str, int]:
            counts = ALLOCATIONS[name]().counts(task)
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
            assert not any(module._forward_pre_hooks for module in model.modules())
            return counts

    try:
        assert prune("checking", model, target_sparsity=0.5) == prune(name, target_sparsity=0.5)
    finally:
        del ALLOCATIONS["checking"]


def test_allocating_does_not_change_the_inputs_of_the_run() -> None:
    class IteratingUniform(Uniform):
        needs = "norms"

        def counts(self, task: AllocationTask) -> dict[str, int]:
            assert [name for name, _ in task.iterate_problems()] == ["0", "1", "2"]
            return super().counts(task)

    plain, iterated = build_model(), build_model()
    prune("uniform", plain, target_sparsity=0.5)
    prune(IteratingUniform(), iterated, target_sparsity=0.5)
    assert all(torch.equal(left, right) for left, right in zip(plain.parameters(), iterated.parameters(), strict=True))


@pytest.mark.parametrize("name", ALL)
def test_rules_have_separate_totals(name: str) -> None:
    config = {"target_sparsity": 0.5, "layers": {"1[.].*": {"target_sparsity": 0.25}}}
    counts = prune(name, **config)
    assert sum(counts[key] for key in counts if key.startswith("1.")) == 48
    assert sum(counts.values()) == 48 + 192


class IterationError(Exception):
    """Raised when an allocation iterates over problems."""


def build_failing_task(**config: Any) -> AllocationTask:
    def iterate_problems() -> Iterator[Any]:
        raise IterationError

    return AllocationTask(
        pattern=get_pattern(config, {"a": nn.Linear(8, 4), "b": nn.Linear(8, 8)}), iterate_problems=iterate_problems
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("config", "counts"),
    [
        ({"pattern": "2:4"}, {"a": 8, "b": 16}),
        ({"pattern": "1x1", "target_sparsity": 0.0}, {"a": 0, "b": 0}),
        ({"pattern": "1x1", "target_sparsity": 0.5, "max_sparsity_ratio_per_op": 0.5}, {"a": 16, "b": 32}),
        ({"pattern": "1x1", "target_sparsity": 0.5, "min_sparsity_ratio_per_op": 0.5}, {"a": 16, "b": 32}),
    ],
)
def test_nothing_is_computed_if_bounds_leave_no_choice(
    name: str, config: dict[str, Any], counts: dict[str, int]
) -> None:
    assert allocate(ALLOCATIONS[name](), build_failing_task(**config)) == counts


@pytest.mark.parametrize("name", [name for name in ALL if name != "uniform"])
def test_problems_are_computed_if_there_is_a_choice(name: str) -> None:
    with pytest.raises(IterationError):
        allocate(ALLOCATIONS[name](), build_failing_task(pattern="2:4", target_sparsity=0.25))


# Uniform.


def test_uniform_rounds_each_layer_within_its_bounds() -> None:
    def counts(rows: list[int], **config: float) -> list[int]:
        return list(allocate(Uniform(), build_task(*random_layers(0, rows), **config)).values())

    assert counts([1, 2, 3], target_sparsity=0.3) == [2, 5, 7]
    assert counts([1, 50], target_sparsity=0.3) == [2, 120]
    assert counts([1, 50], target_sparsity=0.3, min_sparsity_ratio_per_op=0.26) == [3, 120]
    assert counts([2, 50], target_sparsity=0.35) == [6, 140]
    assert counts([2, 50], target_sparsity=0.35, max_sparsity_ratio_per_op=0.36) == [5, 140]


# Apportioning shares.


def build_count_task(units: list[int], target: float, **config: Any) -> AllocationTask:
    modules = {f"fc{index}": nn.Linear(count, 1) for index, count in enumerate(units)}
    pattern = get_pattern({"pattern": "1x1", "target_sparsity": target, **config}, modules)
    return AllocationTask(pattern=pattern, iterate_problems=lambda: iter([]))


def test_a_common_shift_meets_the_total() -> None:
    assert apportion({"fc0": 0.0, "fc1": 0.4}, build_count_task([10, 10], 0.5)) == {"fc0": 3, "fc1": 7}
    assert apportion({"fc0": 0.0, "fc1": 0.4}, build_count_task([10, 30], 0.5)) == {"fc0": 2, "fc1": 18}


def test_other_layers_compensate_for_a_bound() -> None:
    task = build_count_task([10, 10, 10], 0.5, max_sparsity_ratio_per_op=0.6)
    assert apportion({"fc0": 0.0, "fc1": 0.1, "fc2": 0.9}, task) == {"fc0": 4, "fc1": 5, "fc2": 6}


def test_the_largest_remainders_are_rounded_up_and_ties_go_to_the_first() -> None:
    assert apportion({"fc0": 0.0, "fc1": 0.0, "fc2": 0.0}, build_count_task([5, 5, 5], 0.5)) == {
        "fc0": 3,
        "fc1": 3,
        "fc2": 2,
    }
    assert apportion({"fc0": 0.0, "fc1": 0.0}, build_count_task([4, 7], 0.5)) == {"fc0": 2, "fc1": 4}


@given(
    layers=st.lists(st.tuples(st.integers(1, 50), st.floats(-2, 2)), min_size=1, max_size=6),
    target=st.floats(0.2, 0.8),
)
def test_counts_are_within_one_unit_of_a_common_shift(layers: list[tuple[int, float]], target: float) -> None:
    task = build_count_task([units for units, _ in layers], target)
    shares = {name: share for name, (_, share) in zip(task.units, layers, strict=True)}
    counts = apportion(shares, task)
    assert sum(counts.values()) == task.total
    # Each layer excludes shifts that are too small or too large for it; at least one shift must remain.
    nonzero = [name for name, count in counts.items() if count > 0]
    partial = [name for name, count in counts.items() if count < task.units[name]]
    low = max((counts[name] - 1) / task.units[name] - shares[name] for name in nonzero) if nonzero else -np.inf
    high = min((counts[name] + 1) / task.units[name] - shares[name] for name in partial) if partial else np.inf
    assert low <= high + 1e-9


# Errors.


class Fixed(Allocation):
    needs = "nothing"

    def __init__(self, **counts: int) -> None:
        self.given = counts

    def counts(self, task: AllocationTask) -> dict[str, int]:  # noqa: ARG002
        return self.given


def test_a_custom_allocation_is_selected_by_name() -> None:
    @register_allocation("pyramid")
    class Pyramid(Allocation):
        needs = "nothing"

        def counts(self, task: AllocationTask) -> dict[str, int]:
            return apportion({name: 0.1 * index for index, name in enumerate(task.units)}, task)

    try:
        counts = list(prune("pyramid", target_sparsity=0.5).values())
        assert counts == [24, 34, 43, 53, 62, 72]
    finally:
        del ALLOCATIONS["pyramid"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 9}, "The allocation Fixed must return a count for each of 'a', 'b', found 'a'."),
        ({}, "must return a count for each of 'a', 'b', found none."),
        ({"a": 33, "b": 15}, "must prune 0 to 32 of 32 units of layer 'a', found 33."),
        ({"a": 24, "b": 27}, "must prune 48 units in total, found 51."),
    ],
)
def test_wrong_counts_are_refused(counts: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        allocate(Fixed(**counts), build_failing_task(pattern="1x1", target_sparsity=0.5))
    assert message in str(caught.value)


def test_counts_can_be_rounded_per_layer() -> None:
    assert allocate(Fixed(a=24, b=26), build_failing_task(pattern="1x1", target_sparsity=0.5)) == {"a": 24, "b": 26}


@pytest.mark.usefixtures("registries_restored")
def test_a_pattern_that_couples_layers_is_refused() -> None:
    @register_pattern("coupled")
    class Coupled(BasePattern):
        def tile(self, view: WeightView) -> Any:
            return get_pattern({"pattern": "1xchannel"}, {}).tile(view)

        def couple(self, tilings: dict[str, Any]) -> dict[str, Units]:
            return {"all": Units(tilings)}

    pattern = get_pattern({"pattern": "coupled"}, {"a": nn.Linear(2, 8), "b": nn.Linear(3, 8)})
    task = AllocationTask(pattern=pattern, iterate_problems=lambda: iter([]))
    with pytest.raises(
        UnsupportedModelError, match="'coupled' couples layers, and solvers prune each layer on its own"
    ):
        allocate(Uniform(), task)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OWL(outlier=0), "outlier must be above 0, found 0."),
        (lambda: OWL(outlier=float("nan")), "outlier must be above 0, found nan."),
        (lambda: OWL(spread=0.6), "spread must be in [0, 0.5], found 0.6."),
        (lambda: OWL(spread=-0.1), "spread must be in [0, 0.5], found -0.1."),
        (lambda: Sensitivity(span=0), "span must be in (0, 1], found 0."),
        (lambda: Sensitivity(span=1.5), "span must be in (0, 1], found 1.5."),
        (lambda: Sensitivity(points=1), "points must be at least 2, found 1."),
        (lambda: Sensitivity(iterations=-1), "iterations must be at least 0, found -1."),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


def test_impossible_allocations_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Unknown allocation 'owls'"):
        prune("owls")
    with pytest.raises(CalibrationError, match="OWL needs calibration data, found none"):
        secateur.prune(build_model(), {"pattern": "1x1"}, allocation="owl")
    with pytest.raises(ConfigError, match="is out of reach over all layers"):
        prune("owl", target_sparsity=0.5, max_sparsity_ratio_per_op=0.4)


# Global.


def rank_globally(weights: Arrays, inputs: Arrays, total: int, unit: tuple[int, int] = (1, 1)) -> dict[str, int]:
    """Count how many of the `total` smallest units are in each layer."""
    rows, columns = unit
    units = []
    for name, weight in weights.items():
        scores = np.abs(weight) * np.linalg.norm(inputs[name], axis=0)
        squares = (scores / scores.mean()) ** 2
        blocks = squares.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
        units += [(value, name) for value in blocks.sum(axis=(1, 3)).ravel()]
    pruned_names = [name for _, name in sorted(units)[:total]]
    return {name: pruned_names.count(name) for name in weights}


@pytest.mark.parametrize(
    ("pattern", "unit"), [("1x1", (1, 1)), ("4x1", (4, 1)), ("1x4", (1, 4)), ("1xchannel", (1, 8))]
)
def test_global_prunes_the_smallest_units_of_all_layers(pattern: str, unit: tuple[int, int]) -> None:
    layers = random_layers(1, [8, 16, 40])
    task = build_task(*layers, pattern=pattern, target_sparsity=0.5)
    assert allocate(Global(), task) == rank_globally(*layers, task.total, unit)


def test_global_ranks_groups_by_the_energy_they_lose() -> None:
    weights, inputs = random_layers(2, [8, 16])
    task = build_task(weights, inputs, pattern="2:4", target_sparsity=0.25)
    lost = {}
    for name, weight in weights.items():
        scores = np.abs(weight) * np.linalg.norm(inputs[name], axis=0)
        groups = np.sort(((scores / scores.mean()) ** 2).reshape(-1, 4))
        lost |= {(name, index): value for index, value in enumerate(groups[:, :2].sum(axis=1))}
    pruned_names = [name for name, _ in sorted(lost, key=lost.__getitem__)[: task.total]]
    assert allocate(Global(), task) == {name: pruned_names.count(name) for name in weights}


def test_global_ignores_the_scale_of_a_layer() -> None:
    weights, inputs = random_layers(3, [8, 8])
    plain = allocate(Global(), build_task(weights, inputs, target_sparsity=0.5))
    scaled = {"fc0": weights["fc0"] * 1e-3, "fc1": weights["fc1"]}, {"fc0": inputs["fc0"], "fc1": inputs["fc1"] * 1e12}
    assert allocate(Global(), build_task(*scaled, target_sparsity=0.5)) == plain


def test_global_prunes_a_layer_with_zero_outputs_up_to_its_bound() -> None:
    weights, inputs = random_layers(4, [8, 8, 8])
    weights["fc0"][:], inputs["fc2"][:] = 0, 0
    task = build_task(weights, inputs, target_sparsity=0.5, max_sparsity_ratio_per_op=0.6)
    assert allocate(Global(), task) == {"fc0": 38, "fc1": 20, "fc2": 38}


def test_a_large_output_does_not_make_other_weights_negligible() -> None:
    weights, inputs = random_layers(5, [64, 64])
    weights["fc1"] = weights["fc0"].copy()
    weights["fc1"][0] *= 10
    inputs["fc1"] = inputs["fc0"]
    counts = allocate(Global(), build_task(weights, inputs, target_sparsity=0.5))
    assert counts["fc0"] < counts["fc1"] < 0.6 * weights["fc1"].size


# OWL.


def outliers(weight: np.ndarray, rows: np.ndarray, multiple: float) -> float:
    scores = np.abs(weight) * np.linalg.norm(rows, axis=0)
    return float((scores > multiple * scores.mean()).mean())


def build_layers_with_outliers(few: int, some: int, many: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Build three layers of ones with the given numbers of weights of 100."""
    weights = {}
    for name, count in {"few": few, "some": some, "many": many}.items():
        weights[name] = np.ones((25, FEATURES))
        weights[name].ravel()[:count] = 100
    return weights, dict.fromkeys(weights, np.eye(FEATURES))


def test_owl_prunes_layers_with_more_outliers_less() -> None:
    task = build_task(*build_layers_with_outliers(0, 5, 10), target_sparsity=0.5)
    assert allocate(OWL(), task) == {"few": 116, "some": 100, "many": 84}
    assert allocate(OWL(spread=0.2), task) == {"few": 140, "some": 100, "many": 60}


def test_owl_keeps_the_mean_at_the_target() -> None:
    task = build_task(*build_layers_with_outliers(0, 0, 6), target_sparsity=0.5)
    assert allocate(OWL(spread=0.15), task) == {"few": 120, "some": 120, "many": 60}


def test_owl_is_uniform_if_all_layers_have_equally_many_outliers() -> None:
    assert set(allocate(OWL(), build_task(*build_layers_with_outliers(3, 3, 3), target_sparsity=0.5)).values()) == {100}


def test_owl_compensates_for_a_bound_in_other_layers() -> None:
    task = build_task(*build_layers_with_outliers(0, 5, 10), target_sparsity=0.5, max_sparsity_ratio_per_op=0.55)
    assert allocate(OWL(spread=0.2), task) == {"few": 110, "some": 110, "many": 80}


def test_owl_prunes_all_layers_of_a_block_equally() -> None:
    weights, inputs = random_layers(6, [40, 8, 16, 24])
    weights["fc0"][:9, 0] *= 50
    parts = [["fc0", "fc1"], ["fc2"], ["fc3"]]
    counts = allocate(OWL(), build_task(weights, inputs, parts, target_sparsity=0.5))
    shares = {name: count / weights[name].size for name, count in counts.items()}
    assert shares["fc0"] == pytest.approx(shares["fc1"], abs=1 / 64)
    assert shares["fc0"] < shares["fc2"]


def test_owl_equals_the_formula_of_the_paper() -> None:
    weights, inputs = random_layers(7, [40, 40, 40])
    shares = np.array([outliers(weights[name], inputs[name], 2.5) for name in weights])
    scaled = (shares - shares.min()) / (shares.max() - shares.min()) * 2 * 0.1
    density = scaled - scaled.mean() + (1 - 0.6)
    counts = allocate(OWL(outlier=2.5, spread=0.1), build_task(weights, inputs, target_sparsity=0.6))
    np.testing.assert_allclose(list(counts.values()), (1 - density) * 320, atol=1)


def test_owl_treats_layers_separately_if_there_is_one_part() -> None:
    layers = build_layers_with_outliers(0, 5, 10)
    separate = allocate(OWL(), build_task(*layers, target_sparsity=0.5))
    assert allocate(OWL(), build_task(*layers, parts=[["few", "some", "many"], []], target_sparsity=0.5)) == separate


def test_owl_converts_shares_to_groups() -> None:
    task = build_task(*build_layers_with_outliers(0, 5, 10), pattern="2:4", target_sparsity=0.25)
    assert allocate(OWL(), task) == {"few": 33, "some": 25, "many": 17}


# Sensitivity.


def compute_error(weight: np.ndarray, rows: np.ndarray, per_row: int) -> float:
    """Return the error of a layer, relative to its squared mean score, if each row loses `per_row` weights."""
    scores = np.abs(weight) * np.linalg.norm(rows, axis=0)
    sparse = weight.copy()
    np.put_along_axis(sparse, np.argsort(scores, axis=1)[:, :per_row], 0, axis=1)
    return float(np.linalg.norm(rows @ (weight - sparse).T) ** 2 / scores.mean() ** 2)


def evaluate_hull(curve: Sequence[tuple[int, float]], count: int) -> float:
    """Return the smallest value of any chord of a curve at a count."""
    chords = [(left, right) for left in curve for right in curve if left[0] <= count <= right[0]]
    return min(float(np.interp(count, *zip(left, right, strict=True))) for left, right in chords)


def find_minimum(curves: Sequence[Sequence[tuple[int, float]]], total: int) -> float:
    """Find the smallest sum of errors by trying all counts that add up to the total."""
    everything = itertools.product(*[range(curve[0][0], curve[-1][0] + 1) for curve in curves])
    return min(sum_errors(curves, counts) for counts in everything if sum(counts) == total)


def sum_errors(curves: Sequence[Sequence[tuple[int, float]]], counts: Sequence[int]) -> float:
    return sum(evaluate_hull(curve, count) for curve, count in zip(curves, counts, strict=True))


@given(
    errors=st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=1, max_size=3),
    share=st.floats(0, 1),
)
def test_no_other_counts_have_a_smaller_error(errors: list[list[float]], share: float) -> None:
    curves = [list(enumerate(curve, start=first)) for first, curve in enumerate(errors)]
    low, high = (sum(curve[end][0] for curve in curves) for end in (0, -1))
    total = low + round(share * (high - low))
    counts = list(minimize_error({str(index): curve for index, curve in enumerate(curves)}, total).values())
    assert sum(counts) == total
    assert sum_errors(curves, counts) == pytest.approx(find_minimum(curves, total), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_sensitivity_finds_the_best_combination(seed: int) -> None:
    weights, inputs = random_layers(seed, [1, 1, 1])
    curves = [[(count, compute_error(weights[name], inputs[name], count)) for count in range(9)] for name in weights]
    counts = Sensitivity(span=1.0, points=9).counts(build_task(weights, inputs, target_sparsity=0.5))
    assert sum(counts.values()) == 12
    assert sum_errors(curves, list(counts.values())) == pytest.approx(find_minimum(curves, 12), rel=1e-4)


def test_sensitivity_prunes_layers_with_smaller_errors_more() -> None:
    weights, inputs = random_layers(0, [40, 40])
    weights["fc0"][:, :4] *= 1e-3
    counts = allocate(Sensitivity(), build_task(weights, inputs, target_sparsity=0.4))
    assert counts["fc0"] > counts["fc1"] + 40


def test_sensitivity_stays_within_its_span() -> None:
    weights, inputs = random_layers(0, [40, 40])
    weights["fc0"][:, :6] *= 1e-6
    counts = allocate(Sensitivity(span=0.25), build_task(weights, inputs, target_sparsity=0.4))
    assert counts == {"fc0": 160, "fc1": 96}


def test_sensitivity_measures_repaired_weights() -> None:
    weights, inputs = random_layers(0, [40, 40])
    inputs["fc0"][:, :4] = inputs["fc0"][:, 4:] * 0.7  # the other half can compensate for them
    task = build_task(weights, inputs, target_sparsity=0.4)
    plain, repaired = (allocate(Sensitivity(iterations=count), task) for count in (0, 20))
    assert repaired["fc0"] > plain["fc0"]


@pytest.mark.parametrize(
    ("last", "bound", "counts"),
    [
        (12, {"max_sparsity_ratio_per_op": 0.9}, [*9 * [0], 10]),
        (16, {"min_sparsity_ratio_per_op": 0.1}, [*9 * [1], 3]),
    ],
)
def test_sensitivity_ignores_a_span_that_is_out_of_reach(last: int, bound: dict[str, float], counts: list[int]) -> None:
    task = build_task(*random_layers(0, [*9 * [1], last]), pattern="1xchannel", target_sparsity=0.5, **bound)
    assert list(allocate(Sensitivity(), task).values()) == counts
