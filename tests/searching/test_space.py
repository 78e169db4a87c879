"""Tests of the space of a search: its forms, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ConfigError, UnknownNameError
from secateur.searching import PruningSpace, Range
from secateur.searching.layer_groups import group_layers

LAYERS = ["embed", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.10.up"]


def test_the_forms_of_a_space() -> None:
    space = PruningSpace.parse({"pattern": "1x1", "sparsity": [0.5, 0.25, 0.5], "refine": ["none", ["pcg", "block"]]})
    assert (space.pattern, space.sparsity, space.refine) == (("1x1",), (0.25, 0.5), ((), ("pcg", "block")))
    assert PruningSpace.parse(space) is space
    ranges = {"low": 0.5, "high": 1, "step": 0.25}
    assert PruningSpace.parse({"width": ranges}).width == Range(0.5, 1, 0.25)


@pytest.mark.parametrize(
    ("space", "error", "found"),
    [
        ({}, ConfigError, "The space is empty.*found neither"),
        ({"solver": ["wanda"]}, ConfigError, "The space is empty"),
        (["4x1"], ConfigError, "space must be a mapping"),
        ({"patern": "4x1"}, UnknownNameError, "unknown key 'patern'. Did you mean 'pattern'"),
        ({"pattern": []}, ConfigError, "pattern must have at least one choice"),
        ({"pattern": "4y1"}, UnknownNameError, "Unknown pattern '4y1'"),
        ({"pattern": 4}, ConfigError, "a pattern must be a string such as '2:4', found 4"),
        ({"pattern": "channels", "sparsity": 0.5}, ConfigError, "'channels' prunes units of several layers.*'width'"),
        ({"pattern": ["2:4", "4x1"]}, ConfigError, "sparsity must be set for patterns other than N:M"),
        ({"pattern": "4x1", "sparsity": 1.5}, ConfigError, "sparsity must be numbers in .0, 1., found 1.5"),
        ({"pattern": "4x1", "sparsity": True}, ConfigError, "sparsity must be numbers in .0, 1., found True"),
        ({"pattern": "4x1", "sparsity": {"low": 0.5}}, ConfigError, "a range must have low and high"),
        ({"pattern": "4x1", "sparsity": {"min": 0.5}}, UnknownNameError, "sparsity: unknown key 'min'"),
        ({"pattern": "4x1", "sparsity": {"low": 0.5, "high": 0.5}}, ConfigError, "0 ≤ low < high ≤ 1"),
        ({"width": [0, 0.5]}, ConfigError, "width must be above 0"),
        ({"pattern": "2:4", "solver": "wnda"}, UnknownNameError, "Unknown solver 'wnda'. Did you mean 'wanda'"),
        ({"pattern": "2:4", "refine": [["pgc"]]}, UnknownNameError, "Unknown refiner 'pgc'. Did you mean 'pcg'"),
        ({"pattern": "2:4", "groups": "layers"}, UnknownNameError, "found 'layers'. Did you mean 'layer'"),
        ({"pattern": "2:4", "groups": 3}, ConfigError, "groups must be one of"),
        ({"pattern": "2:4", "groups": []}, ConfigError, "groups must be one of"),
        ({"pattern": "2:4", "groups": {"a": {"solver": "x"}}}, UnknownNameError, "unknown key 'solver'"),
        ({"width": 0.5, "groups": {"a": {"pattern": "2:4"}}}, ConfigError, "groups need a pattern"),
        ({"pattern": "2:4", "groups": {"a": {"pattern": "4x1"}}}, ConfigError, r"groups\['a'\]: sparsity must be set"),
    ],
)
def test_what_is_refused(space: Any, error: type[Exception], found: str) -> None:
    with pytest.raises(error, match=found):
        PruningSpace.parse(space)


@pytest.mark.parametrize(
    ("low", "high", "step"), [(-0.1, 1, None), (0.5, 0.4, None), (0, 1, 0), (0, float("nan"), None)]
)
def test_ranges_are_checked(low: float, high: float, step: float | None) -> None:
    with pytest.raises(ConfigError, match="A range must have"):
        Range(low, high, step)


@given(st.integers(0, 99), st.integers(1, 100), st.integers(1, 100))
def test_values_of_a_range_are_evenly_spaced_and_within_it(low: int, length: int, step: int) -> None:
    high = min(100, low + length)
    values = Range(low / 100, high / 100, step / 100).list_values()
    assert values == tuple(pytest.approx(number / 100) for number in range(low, high + 1, step))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("model", []),
        ("layer", [[name] for name in LAYERS]),
        ("block", [["embed"], ["blocks.0.up", "blocks.0.down"], ["blocks.1.up"], ["blocks.10.up"]]),
        ([r".*\.up", "blocks.*"], [["blocks.0.up", "blocks.1.up", "blocks.10.up"], ["blocks.0.down"]]),
    ],
)
def test_layers_are_divided_into_groups(groups: Any, expected: list[list[str]]) -> None:
    space = PruningSpace.parse({"pattern": "1x1", "sparsity": 0.5, "groups": groups})
    found = group_layers(space, LAYERS)
    assert [list(group.layers) for group in found] == expected
    config = {group.expression: {"target_sparsity": number / 10} for number, group in enumerate(found)}
    import secateur

    rules = secateur.PruningConfig(pattern="1x1", layers=config)
    for number, group in enumerate(found):
        assert all(rules.for_layer(name, ()).target_sparsity == number / 10 for name in group.layers)


@pytest.mark.parametrize(
    ("groups", "error", "found"),
    [
        (["("], ConfigError, r"'\(' is not a regular expression"),
        (["head"], UnknownNameError, "'head' must match the whole name of a layer.*found none. Layers: embed"),
        (["blocks.*", "blocks.0.up"], UnknownNameError, "'blocks.0.up' must match"),
    ],
)
def test_groups_without_layers_are_refused(groups: Any, error: type[Exception], found: str) -> None:
    space = PruningSpace.parse({"pattern": "1x1", "sparsity": 0.5, "groups": groups})
    with pytest.raises(error, match=found):
        group_layers(space, LAYERS)
