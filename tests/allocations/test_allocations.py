"""How layers share a target: exact totals, bounds, the order that each allocation promises, and plain formulas."""

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


def layer(weight: np.ndarray) -> nn.Linear:
    found = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    found.weight.data = torch.from_numpy(weight.astype("float32"))
    return found


def task_of(weights: Arrays, inputs: Arrays, parts: Sequence[Sequence[str]] | None = None, **config: Any) -> Any:
    """A task of which the survey is known: layers, what each reads, and which of them are in one part of the model."""
    pattern = get_pattern({"pattern": "1x1"} | config, {name: layer(weight) for name, weight in weights.items()})

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


def model() -> nn.Sequential:
    """Three blocks in a stack, and an output layer that stays dense."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(), nn.Linear(12, FEATURES)) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Linear(FEATURES, 3))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, FEATURES, generator=generator) for _ in range(3)]


def pruned(allocation: Any, seen: nn.Module | None = None, solver: str = "wanda", **config: Any) -> dict[str, int]:
    """Layer → units that a whole run took."""
    report = secateur.prune(
        seen or model(), {"pattern": "1x1"} | config, calibration=batches(), solver=solver, allocation=allocation
    )
    return {row.name: row.pruned_units for row in report.layers}


# For all of them.


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
def test_the_total_is_exact_and_the_bounds_hold(
    name: str, rows: list[int], pattern: str, low: float, target: float, high: float, seed: int
) -> None:
    bounds = {"min_sparsity_ratio_per_op": low, "max_sparsity_ratio_per_op": high}
    task = task_of(*random_layers(seed, rows), pattern=pattern, target_sparsity=target, **bounds)
    counts = allocate(ALLOCATIONS[name](), task)
    per_unit = {"1x1": 1, "4x1": 4, "1x4": 4, "2:4": 2}[pattern]
    for layer_name, count in counts.items():
        weights = task.pattern.modules[layer_name].weight.numel()
        assert low * weights <= count * per_unit <= high * weights
    wanted = target * sum(rows) * FEATURES / per_unit
    rounded_apart = len(rows) if name == "uniform" else 1
    assert abs(sum(counts.values()) - wanted) <= 0.5 * rounded_apart
    assert list(counts) == list(task.units)
    assert counts == allocate(ALLOCATIONS[name](), task)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("solver", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_a_whole_run_prunes_what_is_allocated(name: str, solver: str, pattern: str) -> None:
    report = secateur.prune(
        model(),
        {"pattern": pattern, "target_sparsity": 0.25, "max_sparsity_ratio_per_op": 0.375},
        calibration=batches(),
        solver=solver,
        allocation=name,
    )
    assert report.sparsity == 0.25
    assert max(row.sparsity for row in report.layers) <= 0.375


@pytest.mark.parametrize("name", ALL)
def test_allocating_leaves_the_model_as_it_is(name: str) -> None:
    seen, before = model(), model().state_dict()

    @register_allocation("looking")
    class Looking(Allocation):
        needs = ALLOCATIONS[name].needs

        def counts(self, task: AllocationTask) -> dict[str, int]:
            found = ALLOCATIONS[name]().counts(task)
            assert all(torch.equal(value, before[key]) for key, value in seen.state_dict().items())
            assert not any(module._forward_pre_hooks for module in seen.modules())
            return found

    try:
        assert pruned("looking", seen, target_sparsity=0.5) == pruned(name, target_sparsity=0.5)
    finally:
        del ALLOCATIONS["looking"]


def test_the_inputs_are_those_of_the_run_and_not_of_the_survey() -> None:
    class Surveyed(Uniform):
        needs = "norms"

        def counts(self, task: AllocationTask) -> dict[str, int]:
            assert [name for name, _ in task.iterate_problems()] == ["0", "1", "2"]
            return super().counts(task)

    plain, surveyed = model(), model()
    pruned("uniform", plain, target_sparsity=0.5)
    pruned(Surveyed(), surveyed, target_sparsity=0.5)
    assert all(torch.equal(left, right) for left, right in zip(plain.parameters(), surveyed.parameters(), strict=True))


@pytest.mark.parametrize("name", ALL)
def test_rules_have_a_total_of_their_own(name: str) -> None:
    config = {"target_sparsity": 0.5, "layers": {"1[.].*": {"target_sparsity": 0.25}}}
    found = pruned(name, **config)
    assert sum(found[key] for key in found if key.startswith("1.")) == 48
    assert sum(found.values()) == 48 + 192


class NoSurvey(Exception):  # noqa: N818 - says what must not happen
    pass


def unsurveyed(**config: Any) -> AllocationTask:
    def iterate_problems() -> Iterator[Any]:
        raise NoSurvey

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
def test_where_bounds_leave_no_choice_nothing_is_surveyed(
    name: str, config: dict[str, Any], counts: dict[str, int]
) -> None:
    assert allocate(ALLOCATIONS[name](), unsurveyed(**config)) == counts


@pytest.mark.parametrize("name", [name for name in ALL if name != "uniform"])
def test_where_there_is_a_choice_the_model_is_surveyed(name: str) -> None:
    with pytest.raises(NoSurvey):
        allocate(ALLOCATIONS[name](), unsurveyed(pattern="2:4", target_sparsity=0.25))


# Uniform.


def test_uniform_rounds_each_layer_by_itself_within_bounds() -> None:
    def counts(rows: list[int], **config: float) -> list[int]:
        return list(allocate(Uniform(), task_of(*random_layers(0, rows), **config)).values())

    assert counts([1, 2, 3], target_sparsity=0.3) == [2, 5, 7]
    assert counts([1, 50], target_sparsity=0.3) == [2, 120]
    assert counts([1, 50], target_sparsity=0.3, min_sparsity_ratio_per_op=0.26) == [3, 120]
    assert counts([2, 50], target_sparsity=0.35) == [6, 140]
    assert counts([2, 50], target_sparsity=0.35, max_sparsity_ratio_per_op=0.36) == [5, 140]


# Shares to whole units.


def counted(units: list[int], target: float, **config: Any) -> AllocationTask:
    modules = {f"fc{index}": nn.Linear(count, 1) for index, count in enumerate(units)}
    pattern = get_pattern({"pattern": "1x1", "target_sparsity": target, **config}, modules)
    return AllocationTask(pattern=pattern, iterate_problems=lambda: iter([]))


def test_a_common_shift_meets_the_total() -> None:
    assert apportion({"fc0": 0.0, "fc1": 0.4}, counted([10, 10], 0.5)) == {"fc0": 3, "fc1": 7}
    assert apportion({"fc0": 0.0, "fc1": 0.4}, counted([10, 30], 0.5)) == {"fc0": 2, "fc1": 18}


def test_what_a_bound_denies_one_layer_the_others_make_up_for() -> None:
    task = counted([10, 10, 10], 0.5, max_sparsity_ratio_per_op=0.6)
    assert apportion({"fc0": 0.0, "fc1": 0.1, "fc2": 0.9}, task) == {"fc0": 4, "fc1": 5, "fc2": 6}


def test_the_largest_remainders_are_rounded_up_and_of_equals_the_first() -> None:
    assert apportion({"fc0": 0.0, "fc1": 0.0, "fc2": 0.0}, counted([5, 5, 5], 0.5)) == {"fc0": 3, "fc1": 3, "fc2": 2}
    assert apportion({"fc0": 0.0, "fc1": 0.0}, counted([4, 7], 0.5)) == {"fc0": 2, "fc1": 4}


@given(
    layers=st.lists(st.tuples(st.integers(1, 50), st.floats(-2, 2)), min_size=1, max_size=6),
    target=st.floats(0.2, 0.8),
)
def test_shares_become_counts_within_a_unit_of_one_common_shift(layers: list[tuple[int, float]], target: float) -> None:
    task = counted([units for units, _ in layers], target)
    shares = {name: share for name, (_, share) in zip(task.units, layers, strict=True)}
    counts = apportion(shares, task)
    assert sum(counts.values()) == task.total
    # Each layer says which shifts are too small or too great for it; there must be one that is neither.
    some = [name for name, count in counts.items() if count > 0]
    free = [name for name, count in counts.items() if count < task.units[name]]
    low = max((counts[name] - 1) / task.units[name] - shares[name] for name in some) if some else -np.inf
    high = min((counts[name] + 1) / task.units[name] - shares[name] for name in free) if free else np.inf
    assert low <= high + 1e-9


# Whatever is wrong.


class Fixed(Allocation):
    needs = "nothing"

    def __init__(self, **counts: int) -> None:
        self.given = counts

    def counts(self, task: AllocationTask) -> dict[str, int]:  # noqa: ARG002
        return self.given


def test_an_allocation_of_your_own_serves_by_name() -> None:
    @register_allocation("pyramid")
    class Pyramid(Allocation):
        needs = "nothing"

        def counts(self, task: AllocationTask) -> dict[str, int]:
            return apportion({name: 0.1 * place for place, name in enumerate(task.units)}, task)

    try:
        found = list(pruned("pyramid", target_sparsity=0.5).values())
        assert found == [24, 34, 43, 53, 62, 72]
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
def test_a_wrong_answer_is_refused(counts: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        allocate(Fixed(**counts), unsurveyed(pattern="1x1", target_sparsity=0.5))
    assert message in str(caught.value)


def test_a_right_answer_may_be_rounded_per_layer() -> None:
    assert allocate(Fixed(a=24, b=26), unsurveyed(pattern="1x1", target_sparsity=0.5)) == {"a": 24, "b": 26}


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
        (lambda: OWL(spread=0.6), "spread must lie in [0, 0.5], found 0.6."),
        (lambda: OWL(spread=-0.1), "spread must lie in [0, 0.5], found -0.1."),
        (lambda: Sensitivity(span=0), "span must lie in (0, 1], found 0."),
        (lambda: Sensitivity(span=1.5), "span must lie in (0, 1], found 1.5."),
        (lambda: Sensitivity(points=1), "points must be at least 2, found 1."),
        (lambda: Sensitivity(iterations=-1), "iterations must be at least 0, found -1."),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


def test_what_cannot_be_allocated_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Unknown allocation 'owls'"):
        pruned("owls")
    with pytest.raises(CalibrationError, match="OWL needs calibration data, found none"):
        secateur.prune(model(), {"pattern": "1x1"}, allocation="owl")
    with pytest.raises(ConfigError, match="is out of reach over all layers"):
        pruned("owl", target_sparsity=0.5, max_sparsity_ratio_per_op=0.4)


# Global.


def plain_global(weights: Arrays, inputs: Arrays, total: int, unit: tuple[int, int] = (1, 1)) -> dict[str, int]:
    """How many of the `total` smallest of all units lie in each layer."""
    rows, columns = unit
    units = []
    for name, weight in weights.items():
        scores = np.abs(weight) * np.linalg.norm(inputs[name], axis=0)
        squares = (scores / scores.mean()) ** 2
        blocks = squares.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
        units += [(value, name) for value in blocks.sum(axis=(1, 3)).ravel()]
    taken = [name for _, name in sorted(units)[:total]]
    return {name: taken.count(name) for name in weights}


@pytest.mark.parametrize(
    ("pattern", "unit"), [("1x1", (1, 1)), ("4x1", (4, 1)), ("1x4", (1, 4)), ("1xchannel", (1, 8))]
)
def test_global_takes_the_smallest_units_of_all(pattern: str, unit: tuple[int, int]) -> None:
    layers = random_layers(1, [8, 16, 40])
    task = task_of(*layers, pattern=pattern, target_sparsity=0.5)
    assert allocate(Global(), task) == plain_global(*layers, task.total, unit)


def test_global_ranks_groups_of_n_of_m_by_what_they_lose() -> None:
    weights, inputs = random_layers(2, [8, 16])
    task = task_of(weights, inputs, pattern="2:4", target_sparsity=0.25)
    lost = {}
    for name, weight in weights.items():
        scores = np.abs(weight) * np.linalg.norm(inputs[name], axis=0)
        groups = np.sort(((scores / scores.mean()) ** 2).reshape(-1, 4))
        lost |= {(name, index): value for index, value in enumerate(groups[:, :2].sum(axis=1))}
    taken = [name for name, _ in sorted(lost, key=lost.__getitem__)[: task.total]]
    assert allocate(Global(), task) == {name: taken.count(name) for name in weights}


def test_global_does_not_look_at_the_scale_of_a_layer() -> None:
    weights, inputs = random_layers(3, [8, 8])
    plain = allocate(Global(), task_of(weights, inputs, target_sparsity=0.5))
    scaled = {"fc0": weights["fc0"] * 1e-3, "fc1": weights["fc1"]}, {"fc0": inputs["fc0"], "fc1": inputs["fc1"] * 1e12}
    assert allocate(Global(), task_of(*scaled, target_sparsity=0.5)) == plain


def test_global_takes_a_layer_that_gives_out_nothing_up_to_its_bound() -> None:
    weights, inputs = random_layers(4, [8, 8, 8])
    weights["fc0"][:], inputs["fc2"][:] = 0, 0
    task = task_of(weights, inputs, target_sparsity=0.5, max_sparsity_ratio_per_op=0.6)
    assert allocate(Global(), task) == {"fc0": 38, "fc1": 20, "fc2": 38}


def test_one_great_output_does_not_make_the_rest_of_a_layer_worthless() -> None:
    weights, inputs = random_layers(5, [64, 64])
    weights["fc1"] = weights["fc0"].copy()
    weights["fc1"][0] *= 10
    inputs["fc1"] = inputs["fc0"]
    counts = allocate(Global(), task_of(weights, inputs, target_sparsity=0.5))
    assert counts["fc0"] < counts["fc1"] < 0.6 * weights["fc1"].size


# OWL.


def outliers(weight: np.ndarray, rows: np.ndarray, multiple: float) -> float:
    scores = np.abs(weight) * np.linalg.norm(rows, axis=0)
    return float((scores > multiple * scores.mean()).mean())


def layers_with_outliers(few: int, some: int, many: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Three layers of ones, with so many weights of 100."""
    weights = {}
    for name, count in {"few": few, "some": some, "many": many}.items():
        weights[name] = np.ones((25, FEATURES))
        weights[name].ravel()[:count] = 100
    return weights, dict.fromkeys(weights, np.eye(FEATURES))


def test_owl_takes_less_where_there_are_more_outliers() -> None:
    task = task_of(*layers_with_outliers(0, 5, 10), target_sparsity=0.5)
    assert allocate(OWL(), task) == {"few": 116, "some": 100, "many": 84}
    assert allocate(OWL(spread=0.2), task) == {"few": 140, "some": 100, "many": 60}


def test_owl_keeps_the_mean_and_not_the_middle_at_the_target() -> None:
    task = task_of(*layers_with_outliers(0, 0, 6), target_sparsity=0.5)
    assert allocate(OWL(spread=0.15), task) == {"few": 120, "some": 120, "many": 60}


def test_owl_is_uniform_where_all_have_as_many_outliers() -> None:
    assert set(allocate(OWL(), task_of(*layers_with_outliers(3, 3, 3), target_sparsity=0.5)).values()) == {100}


def test_owl_makes_up_elsewhere_for_what_a_bound_denies() -> None:
    task = task_of(*layers_with_outliers(0, 5, 10), target_sparsity=0.5, max_sparsity_ratio_per_op=0.55)
    assert allocate(OWL(spread=0.2), task) == {"few": 110, "some": 110, "many": 80}


def test_owl_gives_all_layers_of_a_block_one_share() -> None:
    weights, inputs = random_layers(6, [40, 8, 16, 24])
    weights["fc0"][:9, 0] *= 50
    parts = [["fc0", "fc1"], ["fc2"], ["fc3"]]
    counts = allocate(OWL(), task_of(weights, inputs, parts, target_sparsity=0.5))
    shares = {name: count / weights[name].size for name, count in counts.items()}
    assert shares["fc0"] == pytest.approx(shares["fc1"], abs=1 / 64)
    assert shares["fc0"] < shares["fc2"]


def test_owl_is_the_formula_of_the_paper() -> None:
    weights, inputs = random_layers(7, [40, 40, 40])
    found = np.array([outliers(weights[name], inputs[name], 2.5) for name in weights])
    scaled = (found - found.min()) / (found.max() - found.min()) * 2 * 0.1
    density = scaled - scaled.mean() + (1 - 0.6)
    counts = allocate(OWL(outlier=2.5, spread=0.1), task_of(weights, inputs, target_sparsity=0.6))
    np.testing.assert_allclose(list(counts.values()), (1 - density) * 320, atol=1)


def test_owl_gives_each_layer_its_own_share_where_there_is_one_part() -> None:
    layers = layers_with_outliers(0, 5, 10)
    apart = allocate(OWL(), task_of(*layers, target_sparsity=0.5))
    assert allocate(OWL(), task_of(*layers, parts=[["few", "some", "many"], []], target_sparsity=0.5)) == apart


def test_owl_counts_groups_by_their_share_of_weights() -> None:
    task = task_of(*layers_with_outliers(0, 5, 10), pattern="2:4", target_sparsity=0.25)
    assert allocate(OWL(), task) == {"few": 33, "some": 25, "many": 17}


# Sensitivity.


def error(weight: np.ndarray, rows: np.ndarray, per_row: int) -> float:
    """Of a layer's outputs with so many weights of each output channel pruned, in squares of the mean score."""
    scores = np.abs(weight) * np.linalg.norm(rows, axis=0)
    left = weight.copy()
    np.put_along_axis(left, np.argsort(scores, axis=1)[:, :per_row], 0, axis=1)
    return float(np.linalg.norm(rows @ (weight - left).T) ** 2 / scores.mean() ** 2)


def hull(curve: Sequence[tuple[int, float]], count: int) -> float:
    """The lowest that any chord of a curve comes at a count."""
    chords = [(left, right) for left in curve for right in curve if left[0] <= count <= right[0]]
    return min(float(np.interp(count, *zip(left, right, strict=True))) for left, right in chords)


def least(curves: Sequence[Sequence[tuple[int, float]]], total: int) -> float:
    """The least sum of errors, by trying all counts that add up to the total."""
    everything = itertools.product(*[range(curve[0][0], curve[-1][0] + 1) for curve in curves])
    return min(summed(curves, counts) for counts in everything if sum(counts) == total)


def summed(curves: Sequence[Sequence[tuple[int, float]]], counts: Sequence[int]) -> float:
    return sum(hull(curve, count) for curve, count in zip(curves, counts, strict=True))


@given(
    errors=st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=1, max_size=3),
    share=st.floats(0, 1),
)
def test_no_other_counts_lose_less(errors: list[list[float]], share: float) -> None:
    curves = [list(enumerate(curve, start=first)) for first, curve in enumerate(errors)]
    low, high = (sum(curve[end][0] for curve in curves) for end in (0, -1))
    total = low + round(share * (high - low))
    found = list(minimize_error({str(index): curve for index, curve in enumerate(curves)}, total).values())
    assert sum(found) == total
    assert summed(curves, found) == pytest.approx(least(curves, total), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_sensitivity_finds_the_best_of_all_combinations(seed: int) -> None:
    weights, inputs = random_layers(seed, [1, 1, 1])
    curves = [[(count, error(weights[name], inputs[name], count)) for count in range(9)] for name in weights]
    found = Sensitivity(span=1.0, points=9).counts(task_of(weights, inputs, target_sparsity=0.5))
    assert sum(found.values()) == 12
    assert summed(curves, list(found.values())) == pytest.approx(least(curves, 12), rel=1e-4)


def test_sensitivity_takes_more_where_less_is_lost() -> None:
    weights, inputs = random_layers(0, [40, 40])
    weights["fc0"][:, :4] *= 1e-3
    counts = allocate(Sensitivity(), task_of(weights, inputs, target_sparsity=0.4))
    assert counts["fc0"] > counts["fc1"] + 40


def test_sensitivity_stays_within_its_span() -> None:
    weights, inputs = random_layers(0, [40, 40])
    weights["fc0"][:, :6] *= 1e-6
    counts = allocate(Sensitivity(span=0.25), task_of(weights, inputs, target_sparsity=0.4))
    assert counts == {"fc0": 160, "fc1": 96}


def test_sensitivity_measures_what_repaired_weights_lose() -> None:
    weights, inputs = random_layers(0, [40, 40])
    inputs["fc0"][:, :4] = inputs["fc0"][:, 4:] * 0.7  # the other half can stand in for them
    task = task_of(weights, inputs, target_sparsity=0.4)
    plain, repaired = (allocate(Sensitivity(iterations=count), task) for count in (0, 20))
    assert repaired["fc0"] > plain["fc0"]


@pytest.mark.parametrize(
    ("last", "bound", "found"),
    [
        (12, {"max_sparsity_ratio_per_op": 0.9}, [*9 * [0], 10]),
        (16, {"min_sparsity_ratio_per_op": 0.1}, [*9 * [1], 3]),
    ],
)
def test_sensitivity_looks_further_where_its_span_is_out_of_reach(
    last: int, bound: dict[str, float], found: list[int]
) -> None:
    task = task_of(*random_layers(0, [*9 * [1], last]), pattern="1xchannel", target_sparsity=0.5, **bound)
    assert list(allocate(Sensitivity(), task).values()) == found
