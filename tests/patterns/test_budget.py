from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from secateur.errors import ConfigError
from secateur.patterns.budget import Budget

SHARE = st.integers(0, 100).map(lambda percent: percent / 100)


def budget(units: dict[str, int], **changes: Any) -> Budget:
    settings = {"unit_share": Fraction(1), "target": 0.5, "at_least": 0.0, "at_most": 1.0, "is_global": True}
    return Budget(units=units, **{**settings, **changes})


@given(st.lists(st.integers(1, 200), min_size=1, max_size=5), SHARE, SHARE, SHARE, SHARE)
def test_bounds_always_leave_room_for_the_total(
    units: list[int], target: float, at_least: float, at_most: float, sparsity: float
) -> None:
    assume(at_least <= at_most)
    try:
        found = budget(
            {str(index): count for index, count in enumerate(units)}, target=target, at_least=at_least, at_most=at_most
        )
    except ConfigError:
        assume(False)
    sparsity = min(sparsity, target)
    assert found.count_total(sparsity) == round(sparsity * sum(units))
    assert (
        sum(found.lower_bounds(sparsity).values()) <= found.count_total(sparsity) <= sum(found.upper_bounds().values())
    )


@given(st.integers(0, 100), st.integers(1, 1000))
def test_bounds_count_in_decimals(percent: int, hundreds: int) -> None:
    share = percent / 100
    bounds = budget({"fc": 100 * hundreds}, target=share, at_least=share, at_most=share)
    assert bounds.upper_bounds() == bounds.lower_bounds(share) == {"fc": percent * hundreds}


def test_lower_bounds_grow_with_the_way_gone() -> None:
    bounds = budget({"fc": 100, "conv": 300}, at_least=0.2)
    assert bounds.lower_bounds(0.0) == {"fc": 0, "conv": 0}
    assert bounds.lower_bounds(0.25) == {"fc": 10, "conv": 30}
    assert bounds.lower_bounds(0.5) == bounds.lower_bounds(0.9) == {"fc": 20, "conv": 60}


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), SHARE, SHARE)
def test_what_a_schedule_prunes_first_leaves_room_for_final_minima(
    units: list[int], target: float, at_least: float
) -> None:
    try:
        bounds = budget({str(index): count for index, count in enumerate(units)}, target=target, at_least=at_least)
    except ConfigError:
        assume(False)
    final, pruned = bounds.count_total(target), dict.fromkeys(bounds.units, 0)
    for count in range(final + 1):  # one layer loses as much as it can, the others only what they must
        minima = bounds.lower_bounds(count / sum(units))
        pruned = {name: max(pruned[name], minimum) for name, minimum in minima.items()}
        assert sum(pruned.values()) <= count
        pruned["0"] += min(count - sum(pruned.values()), units[0] - pruned["0"])
    assert all(pruned[name] >= minimum for name, minimum in bounds.lower_bounds(target).items())


def test_a_minimum_does_not_empty_a_layer_by_default() -> None:
    bounds = budget({"fc": 1, "conv": 100}, at_least=0.05, at_most=0.98, is_default=True)
    assert bounds.lower_bounds(0.5) == {"fc": 0, "conv": 5}
    assert bounds.find_ranges()["fc"] == (0, 0)
    with pytest.raises(ConfigError, match=r"min_sparsity_ratio_per_op=0\.6"):
        budget({"fc": 100}, at_least=0.6, unit_share=Fraction(1, 2), is_default=True)


@pytest.mark.parametrize(("sparsity", "groups"), [(0.0, 0), (0.25, 50), (0.5, 100), (0.75, 100)])
def test_units_that_lose_half_of_their_weights(sparsity: float, groups: int) -> None:
    assert budget({"fc": 100}, unit_share=Fraction(1, 2)).count_for(100, sparsity) == groups


def test_a_layer_alone_stays_below_its_bound() -> None:
    bounds = budget({"fc": 10, "conv": 20}, at_most=0.6, is_global=False)
    assert [bounds.count_locally(name, 0.5) for name in bounds.units] == [5, 10]
    assert [bounds.count_locally(name, 1.0) for name in bounds.units] == [6, 12]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"at_most": 0.4},
            r"target_sparsity=0.5 is out of reach over all layers: it means 15 of 30 units, but "
            r"with max_sparsity_ratio_per_op=0.4 for 'fc', 'conv', between 0 and 12 "
            r"units can be pruned, a sparsity of 0 to 0.4\. Change the target or the bound\.",
        ),
        ({"at_least": 0.6}, r"min_sparsity_ratio_per_op=0.6 for 'fc', 'conv', between 18 and 30 units"),
        (
            {"at_most": 0.4, "is_global": False},
            r"in layer 'fc': it means 5 of 10 units, but with max_.* for 'fc', between 0",
        ),
        (
            {"at_most": 0.4, "unit_share": Fraction(1, 2), "target": 0.45},
            r"means 27 of 30 units, .* between 0 and 24 units can be pruned, a sparsity of 0 to 0.4\.",
        ),
    ],
)
def test_an_impossible_target_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        budget({"fc": 10, "conv": 20}, **changes)


def test_many_layers_are_not_all_listed() -> None:
    with pytest.raises(ConfigError, match=r"'7' and 3 more, between"):
        budget({str(index): 10 for index in range(11)}, at_most=0.1)


def test_no_layers_no_complaint() -> None:
    assert budget({}, at_most=0.1).count_total(0.5) == 0
