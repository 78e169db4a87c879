"""Which units are pruned and regrow, and how many each layer keeps, against the plainest NumPy."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns import oracle
from patterns.cases import SPECS, array_pattern, view
from patterns.test_transposable import list_masks, split_tiles
from secateur.config import PruningConfig
from secateur.errors import ConfigError, ScoreError
from secateur.frameworks import WeightView
from secateur.masking.regrowth import GrowthScores, RegrowthUpdater
from secateur.patterns import BasePattern, get_pattern
from secateur.patterns.block import BlockPattern
from secateur.patterns.regrowth import distribute_sparsity, divide_total

Bools = npt.NDArray[np.bool_]
SHAPE = (16, 3, 8)
RIGL: dict[str, Any] = {"kind": "rigl", "end_step": 100}


def exchange_units(keep: Sequence[bool], scores: Sequence[float], growth: Sequence[float], count: int) -> list[bool]:
    """RigL's algorithm 1 on the units of one layer: drop the lowest, then grow the highest of all others."""
    order = sorted((index for index, kept in enumerate(keep) if kept), key=lambda index: (scores[index], -index))
    retained = set(order[count:])
    others = sorted((index for index in range(len(keep)) if index not in retained), key=lambda i: (-growth[i], i))
    return [index in retained or index in others[:count] for index in range(len(keep))]


def exchange_in_groups(keep: Bools, scores: Any, growth: Any, count: int, kept_of_group: int, group: int) -> Bools:
    """The same for N:M: each group grows as many as it lost."""
    order = sorted(np.flatnonzero(keep), key=lambda index: (scores[index], -index))
    found = np.zeros(keep.size, dtype=bool)
    found[order[count:]] = True
    for start in range(0, keep.size, group):
        places = range(start, start + group)
        missing = kept_of_group - int(found[start : start + group].sum())
        found[sorted((i for i in places if not found[i]), key=lambda i: (-growth[i], i))[:missing]] = True
    return found


def exchange_in_tiles(keep: Bools, scores: Any, growth: Any, count: int) -> Bools:
    """The same for 2:4-transposable: of the masks of each tile with all that it retains, the one that grows most."""
    shape = keep.shape
    tiles = [split_tiles(array, 4) for array in (keep, scores, growth)]
    order = sorted(np.flatnonzero(tiles[0]), key=lambda index: (tiles[1].flat[index], -index))
    retained = np.zeros(keep.size, dtype=bool)
    retained[order[count:]] = True
    grown = []
    for tile, gains in zip(retained.reshape(-1, 4, 4), tiles[2], strict=True):
        masks = [mask for mask in list_masks(4, 2) if mask[tile].all()]
        grown.append(masks[int(np.argmax([gains[mask & ~tile].sum() for mask in masks]))])
    blocks = np.array(grown).reshape(shape[0] // 4, shape[1], shape[2] // 4, 4, 4)
    return blocks.transpose(0, 3, 1, 2, 4).reshape(shape)


def random_integers(seed: int, shape: tuple[int, ...] = SHAPE, ties: int = 5) -> Any:
    """Whole numbers with many ties, whose sums are exact in every order."""
    return np.random.default_rng(seed).integers(0, ties, shape).astype(np.float32)


def update_once(pattern: BasePattern, weight: Any, gradient: Any, step: int) -> tuple[Bools, Bools]:
    """The masks (O, K, I) before and after one update of the only layer."""
    name = "fc"
    growth = GrowthScores(pattern, lambda _: weight)
    updater = RegrowthUpdater(pattern, growth)

    def stream(_: str, alive: Any) -> Any:
        return pattern.stream(name, {name: weight}, alive)

    updater.advance(0, stream, {})
    before = pattern.expand_units(updater.keep or {})[name]
    if growth.gradients is not None:
        growth.gradients.add(name, {name: gradient})
    masks = updater.advance(step, stream, {})
    after = pattern.expand_units(updater.keep or {})[name]
    assert masks is not None
    np.testing.assert_array_equal(pattern.views[name].to_canonical(masks[name]), after)
    return before, after


@pytest.mark.parametrize("outputs_last", [False, True])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_an_update_is_that_of_the_oracle(spec: str, outputs_last: bool, seed: int) -> None:
    target = {} if ":" in spec else {"target_sparsity": 0.5}
    config = {**RIGL, **target, "regrow_fraction": 0.8, "criterion_reduce_type": "sum"}
    views = {"fc": view(*SHAPE, outputs_last=outputs_last)}
    pattern = array_pattern(spec, views, **config)
    weight, gradient = random_integers(seed), random_integers(seed + 100)
    before, after = update_once(pattern, weight, gradient, step=30)
    share = 0.8 / 2 * (1 + np.cos(np.pi * 30 / 100))
    if spec.endswith("transposable"):
        count = round(share * int(before.sum()))
        expected = exchange_in_tiles(before, weight, gradient, count)
    elif ":" in spec:
        keep, group = map(int, spec.split(":"))
        count = round(share * int(before.sum()))
        expected = exchange_in_groups(before.ravel(), weight.ravel(), gradient.ravel(), count, keep, group).reshape(
            SHAPE
        )
    else:
        labels = oracle.labels(spec, SHAPE)
        units = [bool(before[labels == unit].all()) for unit in range(labels.max() + 1)]
        scores, growth = (oracle.unit_scores(array, labels, "sum") for array in (weight, gradient))
        count = round(share * sum(units))
        expected = np.array(exchange_units(units, scores, growth, count))[labels]
    assert count > 0
    assert spec != "1x1" or not np.array_equal(before, after)
    np.testing.assert_array_equal(after, expected)
    assert after.sum() == before.sum() == SHAPE[0] * SHAPE[1] * SHAPE[2] // (4 if spec == "1:4" else 2)


@pytest.mark.parametrize("value", [0.0, 1.0, np.inf])
@pytest.mark.parametrize("spec", ["1x1", "4x1", "2:4"])
def test_counts_are_exact_if_all_gradients_are_equal(spec: str, value: float) -> None:
    pattern = array_pattern(spec, {"fc": view(*SHAPE)}, **RIGL, **({} if ":" in spec else {"target_sparsity": 0.75}))
    before, after = update_once(pattern, random_integers(0), np.full(SHAPE, value, np.float32), step=1)
    assert after.sum() == before.sum() == SHAPE[0] * SHAPE[1] * SHAPE[2] // (2 if ":" in spec else 4)
    if ":" in spec:
        assert (after.reshape(-1, 4).sum(axis=1) == 2).all()


def test_every_unit_can_be_exchanged() -> None:
    pattern = array_pattern("1x1", {"fc": view(*SHAPE)}, **RIGL, target_sparsity=0.5, regrow_fraction=1.0)
    weight = random_integers(0, ties=1000)
    before, after = update_once(pattern, weight, np.float32(1) / (1 + weight), step=0)
    assert not (before & after).any()


def test_nan_names_the_layer() -> None:
    for spec in ("4x1", "2:4"):
        pattern = array_pattern(spec, {"fc": view(*SHAPE)}, **RIGL, **({} if ":" in spec else {"target_sparsity": 0.5}))
        gradient = random_integers(1)
        gradient[0, 0, 0] = np.nan
        with pytest.raises(ScoreError, match="layer 'fc': scores must be numbers, found nan"):
            update_once(pattern, random_integers(0), gradient, step=1)


def test_no_gradient_names_the_layer() -> None:
    pattern = array_pattern("1x1", {"fc": view(*SHAPE)}, **RIGL)
    growth = GrowthScores(pattern, lambda _: random_integers(0))
    with pytest.raises(ScoreError, match=r"layer 'fc': kind='rigl' regrows by gradients, but none .* up to step 7"):
        growth.stream("fc", 7)


def test_set_draws_anew_at_each_update_and_the_same_for_equal_seeds() -> None:
    def grow(step: int, **config: Any) -> Bools:
        pattern = array_pattern("1x1", {"fc": view(*SHAPE)}, kind="set", end_step=100, target_sparsity=0.5, **config)
        return update_once(pattern, random_integers(0), None, step)[1]

    assert np.array_equal(grow(1), grow(1))
    assert not np.array_equal(grow(1) & grow(2), grow(1))
    assert not np.array_equal(grow(1), grow(1, seed=1))


def test_set_grows_each_unit_equally_often() -> None:
    hits = np.zeros(SHAPE)
    for seed in range(40):
        pattern = array_pattern(
            "1x1", {"fc": view(*SHAPE)}, kind="set", end_step=100, target_sparsity=0.5, seed=seed, regrow_fraction=1.0
        )
        hits += update_once(pattern, random_integers(0), None, step=0)[1]
    # All 384 are candidates, and 192 grow: binomial with p = 0.5, within six standard deviations.
    assert hits.mean() == 20
    assert np.abs(hits - 20).max() < 6 * np.sqrt(10)


# How many units each layer keeps.

SHAPES = {"conv": (16, 9, 8), "fc": (40, 1, 32), "head": (4, 1, 40)}


def find_densities(shapes: dict[str, tuple[int, int, int]], kernel: dict[str, int], target: float) -> dict[str, float]:
    """Evci's section 3 (1), by repeated division: layers that would be more than dense are dense."""
    sizes = {name: float(np.prod(shape)) for name, shape in shapes.items()}
    kept, dense = sum(sizes.values()) * (1 - target), set[str]()
    raw = {name: (o + i + kernel[name]) / (o * i * (k if kernel[name] else 1)) for name, (o, k, i) in shapes.items()}
    while True:
        free = [name for name in shapes if name not in dense]
        scale = (kept - sum(sizes[name] for name in dense)) / sum(raw[name] * sizes[name] for name in free)
        if not (over := {name for name in free if raw[name] * scale > 1}):
            return {name: 1.0 if name in dense else raw[name] * scale for name in shapes}
        dense |= over


@pytest.mark.parametrize("target", [0.3, 0.5, 0.75, 0.9, 0.95])
@pytest.mark.parametrize("distribution", ["er", "erk", None])
@pytest.mark.parametrize("spec", ["1x1", "4x1"])
def test_densities_are_those_of_the_paper(spec: str, distribution: str | None, target: float) -> None:
    views = {name: square_view(shape) for name, shape in SHAPES.items()}
    config = {**RIGL, "target_sparsity": target, "sparsity_distribution": distribution}
    pattern = array_pattern(spec, views, **config)
    counts = distribute_sparsity(pattern)
    units = {name: int(np.prod(shape)) // (4 if spec == "4x1" else 1) for name, shape in SHAPES.items()}
    assert sum(counts.values()) == round(target * sum(units.values()))
    kernel = {name: 6 if k == 9 and distribution != "er" else 0 for name, (_, k, _) in SHAPES.items()}
    for name, density in find_densities(SHAPES, kernel, target).items():
        assert abs(units[name] - counts[name] - density * units[name]) <= 1.5, name
    if target == 0.3:
        assert counts["head"] == 0


def square_view(shape: tuple[int, int, int]) -> WeightView:
    """A kernel of 3×3 as torch stores it, or the matrix of a linear layer."""
    outputs, positions, inputs = shape
    if positions == 1:
        return WeightView(shape=(outputs, inputs), output_axes=(0,), input_axes=(1,))
    return WeightView(shape=(outputs, inputs, 3, 3), output_axes=(0,), kernel_axes=(2, 3), input_axes=(1,))


def test_bounds_and_scope_of_the_distribution() -> None:
    views = {name: square_view(shape) for name, shape in SHAPES.items()}
    units = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    bounds = {"min_sparsity_ratio_per_op": 0.7, "max_sparsity_ratio_per_op": 0.85}
    counts = distribute_sparsity(array_pattern("1x1", views, **RIGL, target_sparsity=0.8, **bounds))
    assert sum(counts.values()) == round(0.8 * sum(units.values()))
    assert all(0.7 <= counts[name] / units[name] <= 0.85 for name in units)
    local = distribute_sparsity(array_pattern("1x1", views, **RIGL, target_sparsity=0.8, pruning_scope="local"))
    assert local == {name: round(0.8 * count) for name, count in units.items()}
    groups = distribute_sparsity(array_pattern("2:4", views, **RIGL))
    assert groups == {name: count // 4 for name, count in units.items()}


def test_the_default_maximum_does_not_limit_a_distribution() -> None:
    views = {"wide": view(64, 1, 64), "narrow": view(4, 1, 16)}
    pattern = array_pattern("1x1", views, **RIGL, target_sparsity=0.98)
    pattern.limit_layers()
    counts = distribute_sparsity(pattern)
    assert sum(counts.values()) == round(0.98 * (4096 + 64))
    assert counts["wide"] > 0.98 * 4096


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=6, max_size=6),
    data=st.data(),
)
def test_a_total_is_divided_exactly_within_bounds(
    sizes: list[int], pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    bounds = [(min(pair), max(pair)) for pair in pairs[: len(sizes)]]
    total = data.draw(st.integers(sum(low for low, _ in bounds), sum(high for _, high in bounds)))
    counts = divide_total([Fraction(size) for size in sizes], bounds, total)
    assert sum(counts) == total
    assert all(low <= count <= high for count, (low, high) in zip(counts, bounds, strict=True))
    for (one, count, (_, high)), (other, fewer, (low, _)) in _pairs(sizes, counts, bounds):
        # Who could have more and who could have less are proportional, up to the rounding of both.
        assert count >= high or fewer <= low or (count + 1) / one > (fewer - 1) / other


def _pairs(*columns: list[Any]) -> list[tuple[Any, Any]]:
    rows = list(zip(*columns, strict=True))
    return [(left, right) for left in rows for right in rows if left is not right]


# What is refused.


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"end_step": None}, r"end_step must be set with kind='rigl'"),
        ({"keep_zeros": True}, r"keep_zeros=True has no effect with kind='rigl'. Set keep_zeros=False."),
        ({"reg_type": "group_lasso"}, r"reg_type='group_lasso' has no effect with kind='rigl'"),
        ({"sparsity_decay_type": "linear"}, r"sparsity_decay_type='linear' has no effect with kind='rigl'"),
        ({"pruning_scope": "local", "sparsity_distribution": "er"}, r"'er' has no effect with pruning_scope='local'"),
        ({"regrow_fraction": 0.0}, r"regrow_fraction: Input should be greater than 0"),
        ({"layers": {"fc": {"end_step": None}}}, r"layers\['fc'\]: end_step must be set"),
    ],
)
def test_contradictory_settings(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        PruningConfig(**{**RIGL, **config})


class Restrictive(BlockPattern):
    """Keeps what it likes."""

    framework_name = "array"

    def select(self, scores: Any, sparsity: float | None = None) -> Any:
        return super().select(scores, sparsity)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {"pattern": "2:4", "target_sparsity": 0.25},
            r"target_sparsity must be 0.5 with kind='rigl' and pattern '2:4'",
        ),
        ({"pattern": "2:4", "sparsity_distribution": "er"}, r"'er' has no effect with pattern '2:4'"),
        ({"pattern": "1xchannel", "target_sparsity": 0.99}, r"must keep at least 1 in total"),
        ({"pattern": "1xchannel", "target_sparsity": 0.99, "pruning_scope": "local"}, r"leaves no units in 'fc'"),
        ({"pattern": "channels"}, r"kind='rigl' does not support pattern 'channels', whose units are in several"),
    ],
)
def test_patterns_and_targets_that_cannot_regrow(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        distribute_sparsity(get_pattern({**RIGL, **config}, {"fc": view(*SHAPE)}, "array"))


def test_a_class_that_selects_in_its_own_way_must_say_what_can_grow() -> None:
    config, views = {**RIGL, "pattern": "4x1", "target_sparsity": 0.5}, {"fc": view(*SHAPE)}
    with pytest.raises(ConfigError, match=r"pattern '4x1': Restrictive restricts which units are selected"):
        distribute_sparsity(Restrictive(config, views))

    class Explicit(Restrictive):
        def grow_units(self, growth: Any, count: int) -> Any:
            return super().grow_units(growth, count)

    assert distribute_sparsity(Explicit(config, views)) == {"fc": 48}
