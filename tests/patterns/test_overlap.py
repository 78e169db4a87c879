"""Units that overlap in a weight: output channels of one group, input channels of another, against brute force."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from secateur.errors import ScoreError
from secateur.graph import ExplicitMap, Group, Member, Role
from secateur.masking.scores import AccumulatedScores
from secateur.patterns import BasePattern, WeightView, get_pattern
from secateur.patterns.reduction import REDUCTIONS
from secateur.planning.layer_units import describe_units
from secateur.training.group_lasso import compute_shrinkage

Flags = npt.NDArray[np.bool_]

MAX_BRUTE_FORCE = 9
"""Most units of which all subsets are tried."""


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, tuple[int, int]], list[Group]]:
    """Weights between spaces of channels; the channels of a space are split into groups, of units of several channels.

    A weight from a space to itself has rows and columns of the same units.
    """
    spaces = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    ends = st.integers(0, len(spaces) - 1)
    weights = draw(st.lists(st.tuples(ends, ends), min_size=1, max_size=3))
    groups: list[Group] = []
    for space, size in enumerate(spaces):
        order = draw(st.permutations(range(size)))
        start = 0
        while start < size:
            width = draw(st.integers(1, min(2, size - start)))
            units = draw(st.integers(1, (size - start) // width))
            stop = start + units * width
            rows = tuple(tuple(order[unit : unit + width]) for unit in range(start, stop, width))
            is_used = draw(st.booleans()) or stop == size
            members = tuple(
                Member(
                    parameter=f"w{number}",
                    shape=tuple(spaces[end] for end in pair),
                    axis=axis,
                    index_map=ExplicitMap(rows),
                    role=(Role.PRODUCER, Role.CONSUMER)[axis],
                )
                for number, pair in enumerate(weights)
                for axis in (0, 1)
                if pair[axis] == space
            )
            if members and is_used:
                groups.append(Group(units=units, members=members, name=f"g{len(groups)}"))
            start = stop
    covered = {member.parameter for group in groups for member in group.members}
    shapes = {f"w{number}": (spaces[out], spaces[into]) for number, (out, into) in enumerate(weights)}
    return {name: shape for name, shape in shapes.items() if name in covered}, groups


def make_pattern(shapes: Mapping[str, tuple[int, int]], groups: list[Group], **config: Any) -> BasePattern:
    views = {name: WeightView(shape=shape, output_axes=(0,), input_axes=(1,)) for name, shape in shapes.items()}
    pattern = get_pattern({"pattern": "heads", "target_sparsity": 0.5, **config}, views, "array", groups=groups)
    assert not pattern.invalid_layers
    return pattern


def mask_by_hand(shapes: Mapping[str, tuple[int, int]], groups: list[Group], keep: list[Flags]) -> dict[str, Flags]:
    """Set every slice of every pruned unit to ``False``, one by one."""
    masks = {name: np.ones(shape, dtype=bool) for name, shape in shapes.items()}
    for group, kept in zip(groups, keep, strict=True):
        for member in group.members:
            for unit in np.flatnonzero(~kept):
                for index in member.index_map.indices()[unit]:
                    np.moveaxis(masks[member.parameter], member.axis, 0)[index] = False
    return masks


def are_equal(first: Mapping[str, Flags], second: Mapping[str, Flags]) -> bool:
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def draw_keep(data: st.DataObject, groups: list[Group]) -> list[Flags]:
    flags = (st.lists(st.booleans(), min_size=group.units, max_size=group.units) for group in groups)
    return [np.array(kept) for kept in data.draw(st.tuples(*flags))]


@given(model=models(), data=st.data())
def test_masks_intersect(model: tuple[Any, list[Group]], data: st.DataObject) -> None:
    shapes, groups = model
    pattern, keep = make_pattern(*model), draw_keep(data, groups)
    masks = pattern.weight_masks(dict(zip(pattern.units, keep, strict=True)))
    assert are_equal(masks, mask_by_hand(shapes, groups, keep))
    assert pattern.violations(masks) == {}


@given(model=models(), data=st.data())
def test_kept_units_are_the_fewest_with_these_masks(model: tuple[Any, list[Group]], data: st.DataObject) -> None:
    shapes, groups = model
    assume(sum(group.units for group in groups) <= MAX_BRUTE_FORCE)
    pattern, keep = make_pattern(*model), draw_keep(data, groups)
    masks = mask_by_hand(shapes, groups, keep)
    found = pattern.find_kept_units(masks)
    candidates = []
    for flags in product([False, True], repeat=sum(group.units for group in groups)):
        ends = np.cumsum([group.units for group in groups])[:-1]
        candidate = np.split(np.array(flags), ends)
        if are_equal(mask_by_hand(shapes, groups, candidate), masks):
            candidates.append(candidate)
    fewest = min(candidates, key=lambda candidate: sum(kept.sum() for kept in candidate))
    for kept, expected in zip(found.values(), fewest, strict=True):
        np.testing.assert_array_equal(kept, expected)
    if all(kept.any() for kept in keep):
        for kept, expected in zip(found.values(), keep, strict=True):
            np.testing.assert_array_equal(kept, expected)


@given(model=models(), data=st.data(), sparsity=st.floats(0, 0.8), scope=st.sampled_from(["global", "local"]))
def test_counts_are_exact(model: tuple[Any, list[Group]], data: st.DataObject, sparsity: float, scope: str) -> None:
    shapes, groups = model
    pattern = make_pattern(*model, target_sparsity=sparsity, pruning_scope=scope, criterion_reduce_type="sum")
    scores = {
        name: np.array(data.draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns)))
        .reshape(rows, columns)
        .astype(np.float32)
        for name, (rows, columns) in shapes.items()
    }
    masks = pattern.masks(scores)
    arrays = {name: score[:, None] for name, score in scores.items()}
    streams = {name: pattern.stream(name, arrays) for name in pattern.units}
    keep = list(pattern.select(streams).values())
    assert are_equal(masks, mask_by_hand(shapes, groups, keep))
    for group, name in zip(groups, pattern.units, strict=True):
        by_hand = np.zeros(group.units)
        for member in group.members:
            for unit, indices in enumerate(member.index_map.indices()):
                by_hand[unit] += np.moveaxis(scores[member.parameter], member.axis, 0)[indices].sum()
        np.testing.assert_array_equal(
            np.concatenate(list(pattern.units[name].scores(arrays, REDUCTIONS.find("sum")))), by_hand
        )
    pruned = [int((~kept).sum()) for kept in keep]
    if scope == "local":
        assert pruned == [pattern.budget.count_locally(name, sparsity) for name in pattern.units]
    else:
        most = sum(group.units - 1 for group in groups)
        assert sum(pruned) == min(pattern.budget.count_total(sparsity), most) == pattern.count_pruned_units(sparsity)


@given(model=models(), data=st.data())
def test_a_weight_outside_of_pruned_units_is_reported(model: tuple[Any, list[Group]], data: st.DataObject) -> None:
    shapes, groups = model
    pattern, keep = make_pattern(*model), draw_keep(data, groups)
    masks = mask_by_hand(shapes, groups, keep)
    before = mask_by_hand(shapes, groups, [np.asarray(kept) for kept in pattern.find_kept_units(masks).values()])
    name = data.draw(st.sampled_from(sorted(shapes)))
    row, column = (data.draw(st.integers(0, size - 1)) for size in shapes[name])
    masks[name][row, column] = False
    after = mask_by_hand(shapes, groups, [np.asarray(kept) for kept in pattern.find_kept_units(masks).values()])
    # Unless units are now all zero, a new zero follows no unit.
    assert bool(pattern.violations(masks)) == (not are_equal(masks, after))
    if before[name][row, column] and are_equal(before, after):
        assert pattern.violations(masks) == {name: "1 weights are pruned in units that are not fully pruned"}


@given(model=models())
def test_sizes_of_units(model: tuple[Any, list[Group]]) -> None:
    shapes, groups = model
    pattern = make_pattern(*model)
    for group, units in zip(groups, pattern.units.values(), strict=True):
        for unit in range(group.units):
            kept = np.arange(group.units) != unit
            masks = mask_by_hand(shapes, [group], [kept])
            assert units.unit_size == sum(int((~mask).sum()) for mask in masks.values())


def test_a_mask_outside_of_every_unit_is_a_violation() -> None:
    group = Group(
        units=2,
        members=(Member(parameter="w", shape=(2, 2), axis=0, index_map=ExplicitMap(((0,), (1,))), role=Role.PRODUCER),),
        name="g",
    )
    pattern = make_pattern({"w": (2, 2)}, [group])
    masks = {"w": np.array([[True, False], [True, True]])}
    assert pattern.violations(masks) == {"w": "1 weights are pruned in units that are not fully pruned"}
    assert pattern.violations({"w": np.array([[False, False], [True, True]])}) == {}


@given(model=models(), scope=st.sampled_from(["global", "local"]))
def test_plans_count_weights_in_several_units_once(model: tuple[Any, list[Group]], scope: str) -> None:
    shapes, groups = model
    pattern = make_pattern(*model, pruning_scope=scope)
    described = describe_units(pattern)
    everything = mask_by_hand(shapes, groups, [np.zeros(group.units, dtype=bool) for group in groups])
    ranges = pattern.budget.find_ranges()
    for end in (0, 1):
        keep = [np.arange(group.units) >= ranges[name][end] for group, name in zip(groups, pattern.units, strict=True)]
        for layer, mask in mask_by_hand(shapes, groups, keep).items():
            assert described[layer].sparsity_range[end] == pytest.approx((~mask).mean())
    for layer, mask in everything.items():
        assert described[layer].weights == (~mask).sum()
        assert described[layer].units == sum(tiling.count for tiling in pattern.list_parts()[layer].values())


@given(model=models(), seed=st.integers(0, 99))
def test_group_lasso_shrinks_by_every_unit(model: tuple[Any, list[Group]], seed: int) -> None:
    shapes, groups = model
    pattern, rng = make_pattern(*model), np.random.default_rng(seed)
    weights = {name: rng.random(shape) for name, shape in shapes.items()}
    for group, units in zip(groups, pattern.units.values(), strict=True):
        norms, factors = np.zeros(group.units), {name: np.ones(shape) for name, shape in shapes.items()}
        for member in group.members:
            for unit, indices in enumerate(member.index_map.indices()):
                norms[unit] += (np.moveaxis(weights[member.parameter], member.axis, 0)[indices] ** 2).sum()
        by_hand = np.maximum(0, 1 - 0.3 * np.sqrt(units.unit_size) / np.sqrt(norms))
        for member in group.members:
            for unit, indices in enumerate(member.index_map.indices()):
                np.moveaxis(factors[member.parameter], member.axis, 0)[indices] *= by_hand[unit]
        found = compute_shrinkage(units, {layer: weights[layer][:, None] for layer in units.parts}, 0.3)
        for layer, factor in found.items():
            np.testing.assert_allclose(factor[:, 0], factors[layer], atol=1e-12)


@given(model=models(), seed=st.integers(0, 99))
def test_scores_per_weight_are_accumulated_once_per_step(model: tuple[Any, list[Group]], seed: int) -> None:
    shapes, _ = model
    pattern = make_pattern(*model, criterion="snip_momentum", criterion_reduce_type="max")
    rng = np.random.default_rng(seed)
    weights = {name: rng.random(shape, dtype=np.float32)[:, None] for name, shape in shapes.items()}
    scores = AccumulatedScores(pattern, weights.__getitem__)
    assert not scores.is_per_unit
    totals = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for _ in range(3):
        gradients = {name: rng.random(weight.shape, dtype=np.float32) for name, weight in weights.items()}
        for name, units in pattern.units.items():
            scores.add(name, {layer: gradients[layer] for layer in units.parts})
        totals = {
            name: scores.decay * total + scores.criteria[name].score(weights[name], gradients[name])
            for name, total in totals.items()
        }
    assert scores.totals.keys() == shapes.keys()
    for name, total in totals.items():
        np.testing.assert_allclose(scores.totals[name], total, rtol=1e-6)


def test_scores_of_units_are_not_mistaken_for_those_of_a_layer_of_that_name() -> None:
    maps = ExplicitMap(((0,), (1,)))
    shapes = {"a": (2, 3), "b": (3, 2)}
    first = Member(parameter="a", shape=shapes["a"], axis=0, index_map=maps, role=Role.PRODUCER)
    second = Member(parameter="b", shape=shapes["b"], axis=1, index_map=maps, role=Role.CONSUMER)
    pattern = make_pattern(shapes, [Group(units=2, members=(first, second), name="a")], criterion="snip")
    assert list(pattern.units) == ["a.heads"]
    scores = AccumulatedScores(pattern, lambda layer: np.ones((*shapes[layer][:1], 1, shapes[layer][1])))
    with pytest.raises(ScoreError, match=r"layer 'a\.heads': 'snip' ranks by gradients, and none has reached"):
        scores.stream("a.heads", None)
