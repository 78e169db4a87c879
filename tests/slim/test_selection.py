"""Which zero units stay: a property against an oracle in plain Python."""

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.graph import AffineMap, Constraints, Group, Member, Role
from secateur.slimming.selection import equalize_widths, explain_obstacle, select_kept


def make_group(units: int, constraints: Constraints, name: str = "w", **options: object) -> Group:
    member = Member(parameter=name, shape=(2, units), axis=1, index_map=AffineMap(units=units), role=Role.CONSUMER)
    return Group(units=units, members=(member,), constraints=constraints, **options)


def find_best(group: Group, zeros: list[bool], minimum: int) -> list[bool]:
    """Of all allowed selections with every unit that is read: the smallest, and of these the one that is first."""
    rules, size = group.constraints, group.units // group.constraints.equal_parts
    for kept in range(1, group.units):
        if kept % rules.step or kept < max(rules.minimum, minimum):
            continue
        for chosen in combinations(range(group.units), kept):
            parts = [sum(1 for unit in chosen if unit // size == part) for part in range(rules.equal_parts)]
            has_all = all(unit in chosen for unit in range(group.units) if not zeros[unit])
            if has_all and len(set(parts)) == 1:
                return [unit in chosen for unit in range(group.units)]
    return [True] * group.units


@st.composite
def cases(draw: st.DrawFn) -> tuple[Group, list[bool], int]:
    parts = draw(st.sampled_from([1, 1, 2]))
    units = parts * draw(st.integers(1, 5))
    numbers = st.integers(1, 4)
    rules = Constraints(
        multiple=draw(numbers), divisor=draw(st.integers(1, 2)), equal_parts=parts, minimum=draw(numbers)
    )
    zeros = draw(st.lists(st.booleans(), min_size=units, max_size=units))
    return make_group(units, rules), zeros, draw(st.integers(0, 6))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_fewest_zero_units_stay_and_no_other_unit_goes(case: tuple[Group, list[bool], int]) -> None:
    group, zeros, minimum = case
    assert select_kept(group, np.array(zeros), minimum=minimum).tolist() == find_best(group, zeros, minimum)


def test_widths_are_equal_per_kind_only() -> None:
    rules = Constraints()
    groups = [make_group(4, rules, f"layers.{number}.up") for number in range(2)] + [make_group(4, rules, "head")]
    zeros = [np.array(flags) for flags in ([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0])]
    zeros = [flags.astype(bool) for flags in zeros]
    keep = [select_kept(group, flags) for group, flags in zip(groups, zeros, strict=True)]
    assert [flags.tolist() for flags in equalize_widths(groups, zeros, keep)] == [
        [True, False, True, True],
        [False, True, True, True],
        [False, False, False, True],
    ]


def test_obstacles() -> None:
    assert explain_obstacle(make_group(2, Constraints())) is None
    assert explain_obstacle(make_group(2, Constraints(), reason="a barrier")) == "a barrier"
    inexact = make_group(2, Constraints(), inexact="a norm over them")
    assert explain_obstacle(inexact) == "removal is not exact: a norm over them"
    assert explain_obstacle(inexact, allow_inexact=True) is None
