"""Groups, against a brute-force oracle that looks at one number at a time."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ConfigError, LayerError, ScoreError
from secateur.graph import AffineMap, Constraints, ExplicitMap, Group, Member, Role, intersect_masks


def member(
    parameter: str, shape: tuple[int, ...], axis: int, index_map: Any, role: Role = Role.PRODUCER, **more: Any
) -> Member:
    return Member(parameter=parameter, shape=shape, axis=axis, index_map=index_map, role=role, **more)


def unit_of(one: Member, place: tuple[int, ...]) -> int | None:
    """The unit that a number of a parameter belongs to."""
    for unit, row in enumerate(one.index_map.indices().tolist()):
        if place[one.axis] in row:
            return unit
    return None


def oracle_scores(group: Group, scores: Mapping[str, Any]) -> list[float]:
    totals = [0.0] * group.units
    for one in group.members:
        for place in itertools.product(*map(range, one.shape)):
            unit = unit_of(one, place)
            if unit is not None:
                totals[unit] += float(scores[one.parameter][place])
    return totals


def oracle_masks(group: Group, keep: Any) -> dict[str, Any]:
    masks = {one.parameter: np.ones(one.shape, dtype=bool) for one in group.members}
    for one in group.members:
        for place in itertools.product(*map(range, one.shape)):
            unit = unit_of(one, place)
            if unit is not None and not keep[unit]:
                masks[one.parameter][place] = False
    return masks


def scores_of(group: Group, seed: int = 0) -> dict[str, Any]:
    """Whole numbers, so that sums are exact in every order."""
    rng = np.random.default_rng(seed)
    return {one.parameter: rng.integers(0, 9, one.shape).astype(np.float32) for one in group.members}


HEADS, QUERIES, SIZE = 2, 3, 4

GROUPS = {
    "flatten: a convolution, a norm and a linear layer": lambda: Group(
        units=3,
        members=(
            member("conv", (3, 2, 3, 3), 0, AffineMap(units=3)),
            member("norm", (3,), 0, AffineMap(units=3), Role.PER_CHANNEL),
            member("fc", (5, 12), 1, AffineMap(units=3, width=4), Role.CONSUMER),
        ),
    ),
    "flatten with channels last": lambda: Group(
        units=3,
        members=(
            member("conv", (3, 3, 2, 3), -1, AffineMap(units=3)),
            member("fc", (12, 5), 0, ExplicitMap(tuple(tuple(range(c, 12, 3)) for c in range(3))), Role.CONSUMER),
        ),
    ),
    "fused queries, keys and values": lambda: Group(
        units=HEADS,
        members=(
            *(member("qkv", (3 * HEADS * SIZE, 8), 0, AffineMap(units=HEADS, width=SIZE, offset=start))
              for start in range(0, 3 * HEADS * SIZE, HEADS * SIZE)),
            member("out", (8, HEADS * SIZE), 1, AffineMap(units=HEADS, width=SIZE), Role.CONSUMER),
        ),
    ),
    "gate and up in one weight": lambda: Group(
        units=4,
        members=(
            member("gate_up", (8, 3), 0, AffineMap(units=4)),
            member("gate_up", (8, 3), 0, AffineMap(units=4, offset=4)),
            member("down", (3, 4), 1, AffineMap(units=4), Role.CONSUMER),
        ),
    ),
    "interleaved gate and up": lambda: Group(
        units=4, members=(member("gate_up", (8, 3), 0, AffineMap(units=4, width=2)),)
    ),
    "the second part of a concatenation": lambda: Group(
        units=3,
        members=(
            member("second", (3, 2), 0, AffineMap(units=3)),
            member("reader", (2, 9), 1, AffineMap(units=3, offset=5), Role.CONSUMER),
        ),
    ),
    "a grouped convolution": lambda: Group(
        units=4,
        members=(member("conv", (4, 2, 3), 0, AffineMap(units=4)),),
        constraints=Constraints(divisor=2, equal_parts=2),
    ),
    "key/value heads with their queries": lambda: Group(
        units=HEADS,
        members=(
            member("q", (HEADS * QUERIES * SIZE, 8), 0, AffineMap(units=HEADS, width=QUERIES * SIZE)),
            member("k", (HEADS * SIZE, 8), 0, AffineMap(units=HEADS, width=SIZE)),
            member("v", (HEADS * SIZE, 8), 0, AffineMap(units=HEADS, width=SIZE)),
            member("o", (8, HEADS * QUERIES * SIZE), 1, AffineMap(units=HEADS, width=QUERIES * SIZE), Role.CONSUMER),
        ),
    ),
    "every other channel": lambda: Group(units=3, members=(member("w", (6, 2), 0, AffineMap(units=3, stride=2)),)),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_scores_add_over_members(name: str) -> None:
    group = GROUPS[name]()
    assert group.score_units(scores_of(group)).tolist() == oracle_scores(group, scores_of(group))
    assert group.unit_size * group.units == sum(
        unit_of(one, place) is not None
        for one in group.members
        for place in itertools.product(*map(range, one.shape))
    )  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_a_mask_prunes_every_member(name: str) -> None:
    group = GROUPS[name]()
    for keep in map(np.array, itertools.product([True, False], repeat=group.units)):
        masks, expected = group.masks(keep), oracle_masks(group, keep)
        assert masks.keys() == expected.keys()
        for parameter, mask in masks.items():
            np.testing.assert_array_equal(mask, expected[parameter])


def test_short_scores_are_added_up_in_float32() -> None:
    group = Group(units=1, members=(member("w", (4096,), 0, AffineMap(units=1, width=4096)),))
    assert group.score_units({"w": np.ones(4096, np.float16) * 100}).tolist() == [409600.0]


def test_scores_of_torch_give_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    group = GROUPS["flatten: a convolution, a norm and a linear layer"]()
    rng = np.random.default_rng(0)
    scores = {one.parameter: rng.random(one.shape, dtype=np.float32) for one in group.members}
    found = group.score_units({name: torch.from_numpy(array) for name, array in scores.items()})
    np.testing.assert_array_equal(found.numpy(), group.score_units(scores))


@st.composite
def random_groups(draw: st.DrawFn) -> Group:
    """One to three members, each with its own axis, map and shape."""
    units, members = draw(st.integers(1, 4)), []
    for number in range(draw(st.integers(1, 3))):
        width = draw(st.integers(1, 3))
        length = units * width + draw(st.integers(0, 3))
        order = draw(st.permutations(range(length)))[: units * width]
        rows = tuple(tuple(order[unit * width : (unit + 1) * width]) for unit in range(units))
        shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        axis = draw(st.integers(0, len(shape) - 1))
        shape[axis] = length
        members.append(member(f"p{number}", tuple(shape), axis, ExplicitMap(rows)))
    return Group(units=units, members=tuple(members))


@given(group=random_groups(), seed=st.integers(0, 9), data=st.data())
def test_any_group_is_as_the_oracle_says(group: Group, seed: int, data: st.DataObject) -> None:
    scores = scores_of(group, seed)
    assert group.score_units(scores).tolist() == oracle_scores(group, scores)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=group.units, max_size=group.units)))
    for parameter, mask in oracle_masks(group, keep).items():
        np.testing.assert_array_equal(group.masks(keep)[parameter], mask)


@given(
    parts=st.integers(1, 3),
    per_part=st.integers(1, 6),
    multiple=st.integers(1, 5),
    divisor=st.integers(1, 3),
    minimum=st.integers(1, 4),
    data=st.data(),
)
def test_counts_are_the_nearest_that_constraints_allow(
    parts: int, per_part: int, multiple: int, divisor: int, minimum: int, data: st.DataObject
) -> None:
    units = parts * per_part
    rules = Constraints(multiple=multiple, divisor=divisor, equal_parts=parts, minimum=minimum)
    group = Group(units=units, members=(member("w", (units,), 0, AffineMap(units=units)),), constraints=rules)
    prune = data.draw(st.integers(0, units))
    allowed = [units] + [
        kept
        for kept in range(minimum, units)
        if kept % multiple == 0 and kept % divisor == 0 and kept % parts == 0
    ]  # fmt: skip
    nearest = min(abs(kept - (units - prune)) for kept in allowed)
    best = max(kept for kept in allowed if abs(kept - (units - prune)) == nearest)
    assert group.count_kept(prune) == best
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=units, max_size=units)), dtype=float)
    keep = group.select_units(scores, prune)
    assert keep.sum() == best
    for start in range(0, units, per_part):
        order = sorted(range(start, start + per_part), key=lambda unit: (-scores[unit], unit))
        stay = per_part if best == units else best // parts
        assert np.flatnonzero(keep[start : start + per_part]).tolist() == sorted(unit - start for unit in order[:stay])


def test_a_hidden_convolution_loses_inputs_with_one_group_and_outputs_with_the_next() -> None:
    first = Group(
        units=2,
        members=(
            member("conv1", (2, 1, 3), 0, AffineMap(units=2)),
            member("conv2", (3, 2, 3), 1, AffineMap(units=2), Role.CONSUMER),
        ),
    )
    second = Group(
        units=3,
        members=(
            member("conv2", (3, 2, 3), 0, AffineMap(units=3)),
            member("conv3", (1, 3, 3), 1, AffineMap(units=3), Role.CONSUMER),
        ),
    )
    masks = intersect_masks([first.masks(np.array([True, False])), second.masks(np.array([False, True, True]))])
    assert masks["conv2"][:, :, 0].tolist() == [[False, False], [True, False], [True, False]]
    assert masks["conv1"].any(axis=(1, 2)).tolist() == [True, False]
    assert masks["conv3"].any(axis=(0, 2)).tolist() == [False, True, True]


def test_tied_weights_are_scored_under_any_of_their_names() -> None:
    group = Group(units=2, members=(member("embedding", (2,), 0, AffineMap(units=2), aliases=("head",)),))
    assert group.score_units({"head": np.array([1.0, 2.0])}).tolist() == [1.0, 2.0]


def test_a_pinned_member_keeps_the_whole_group() -> None:
    pinned = member("input", (2, 3), 1, AffineMap(units=3), Role.PINNED)
    group = Group(units=3, members=(member("w", (3,), 0, AffineMap(units=3)), pinned))
    assert group.pinned == ("input",)
    assert group.select_units(np.array([1.0, 2.0, 3.0]), 2).all()
    with pytest.raises(LayerError, match="units cannot be pruned: 'input' must keep its shape"):
        group.masks(np.array([True, True, False]))


REFUSED = {
    "no unit": (lambda: AffineMap(units=0), r"units must be at least 1, found 0"),
    "no width": (lambda: AffineMap(units=1, width=0), r"width must be at least 1, found 0"),
    "no row": (lambda: ExplicitMap(()), r"at least one unit with at least one index"),
    "ragged": (lambda: ExplicitMap(((0, 1), (2,))), r"same number of indices, found \[1, 2\]"),
    "no axis": (lambda: member("w", (2, 2), 2, AffineMap(units=2)), r"'w' has no axis 2: its shape is \(2, 2\)"),
    "too long": (lambda: member("w", (2, 2), 1, AffineMap(units=3)), r"axis 1: index 2 is out of range .* length 2"),
    "negative": (lambda: member("w", (2,), 0, AffineMap(units=2, offset=-1)), r"index -1 is out of range"),
    "overlap": (
        lambda: member("w", (4,), 0, AffineMap(units=2, width=2, stride=1)),
        r"'w', axis 0: units 0 and 1 overlap: both own index 1",
    ),
    "twice": (lambda: member("w", (4,), 0, ExplicitMap(((1, 1),))), r"unit 0 owns index 1 twice"),
    "no member": (lambda: Group(units=1, members=()), r"a group needs at least one member"),
    "unequal counts": (
        lambda: Group(units=2, members=(member("w", (3,), 0, AffineMap(units=3)),)),
        r"'w', axis 0: the group has 2 units, but the index map has 3",
    ),
    "members overlap": (
        lambda: Group(
            units=2,
            members=tuple(member("w", (3,), 0, AffineMap(units=2, offset=start)) for start in range(2)),
        ),
        r"'w', axis 0: members overlap: index 1 belongs to unit 1 of one member and to unit 0 of another",
    ),
    "parts": (
        lambda: Group(
            units=3, members=(member("w", (3,), 0, AffineMap(units=3)),), constraints=Constraints(equal_parts=2)
        ),
        r"3 units cannot be split into 2 equal parts",
    ),
    "constraint": (lambda: Constraints(multiple=0), r"multiple must be at least 1, found 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_group_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises((ConfigError, LayerError), match=message):
        make()


def test_scores_and_masks_that_do_not_fit_are_refused() -> None:
    group = Group(units=2, members=(member("w", (2, 3), 0, AffineMap(units=2)),))
    with pytest.raises(LayerError, match=r"at least one of \['w'\] must have scores"):
        group.score_units({})
    with pytest.raises(LayerError, match=r"'w': scores must have shape \(2, 3\), found \(3, 2\)"):
        group.score_units({"w": np.ones((3, 2))})
    with pytest.raises(LayerError, match=r"scores must have shape \(2,\), found \(3,\)"):
        group.select_units(np.ones(3), 1)
    with pytest.raises(ScoreError, match="found nan for unit 1"):
        group.select_units(np.array([1.0, np.nan]), 1)
    with pytest.raises(LayerError, match=r"keep must have shape \(2,\), found \(1,\)"):
        group.masks(np.array([True]))
