import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from patterns import oracle
from patterns.cases import array_pattern, stored, view
from secateur.errors import ConfigError
from secateur.patterns import BlockPattern, WeightView

FITTING = ("1x1", "2x1", "1x2", "2x2", "1xchannel", "channelx1", "2xchannel", "channelx2")
VIEW = st.builds(
    lambda rows, positions, columns, groups, last: view(
        2 * rows * groups, positions, 2 * columns, groups, outputs_last=last
    ),
    *(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.booleans()),
)


def draw_scores(data: st.DataObject, views: dict[str, WeightView]) -> dict[str, np.ndarray]:
    """Whole numbers with many ties."""
    seed, most = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([1, 5, 1000]))
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-most, most + 1, one.canonical_shape).astype(np.float32) for name, one in views.items()}


@given(
    spec=st.sampled_from(FITTING),
    layers=st.lists(VIEW, min_size=1, max_size=3),
    scope=st.sampled_from(["global", "local"]),
    reduction=st.sampled_from(["mean", "sum", "max", "l2"]),
    data=st.data(),
)
def test_masks_are_those_of_the_oracle(
    spec: str, layers: list[WeightView], scope: str, reduction: str, data: st.DataObject
) -> None:
    views = {str(index): one for index, one in enumerate(layers)}
    unit_of = {name: oracle.labels(spec, one.canonical_shape, one.groups) for name, one in views.items()}
    count = {name: int(units.max()) + 1 for name, units in unit_of.items()}
    low, target, high = sorted(data.draw(st.integers(0, 10)) / 10 for _ in range(3))
    bounds = {name: (int(np.ceil(low * units - 1e-9)), int(high * units + 1e-9)) for name, units in count.items()}
    wanted = {name: round(target * units) for name, units in count.items()}
    if scope == "global":
        lowest, highest = (sum(bound[side] for bound in bounds.values()) for side in (0, 1))
        assume(lowest <= round(target * sum(count.values())) <= highest)
    else:
        assume(all(bounds[name][0] <= wanted[name] <= bounds[name][1] for name in views))
    pattern = array_pattern(
        spec,
        views,
        target_sparsity=target,
        min_sparsity_ratio_per_op=low,
        max_sparsity_ratio_per_op=high,
        pruning_scope=scope,
        criterion_reduce_type=reduction,
    )
    totals = round(target * sum(count.values())) if scope == "global" else wanted
    previous = None
    for _ in range(2):
        scores = draw_scores(data, views)
        masks = pattern.masks(stored(views, scores), previous=stored(views, previous))
        expected = oracle.block_masks(scores, unit_of, totals, bounds, reduction=reduction, previous=previous)
        for name, mask in masks.items():
            np.testing.assert_array_equal(views[name].to_canonical(mask), expected[name])
        grown = {name: mask | (draw_scores(data, views)[name] < 0) for name, mask in expected.items()}
        whole = pattern.weight_masks(pattern.find_kept_units(stored(views, grown)))
        previous = {name: views[name].to_canonical(mask) for name, mask in whole.items()}


@pytest.mark.parametrize(
    ("spec", "serves"),
    [("4x1", True), ("1xchannel", True), ("channelx16", True), ("channelxchannel", False), ("0x4", False)]
    + [(spec, False) for spec in ("04x1", "4x", "2:4", "NxM", "4x1x1", "4X1", " 4x1")],
)
def test_serves(spec: str, serves: bool) -> None:
    assert BlockPattern.serves(spec) is serves


def test_the_name_of_the_type_is_no_specification() -> None:
    with pytest.raises(ConfigError, match=r"pattern 'NxM' is a pattern type, not a specification\. Use 4x1"):
        array_pattern("NxM")


@pytest.mark.parametrize(
    ("spec", "one", "reason"),
    [
        (
            "4x1",
            view(6, 1, 4),
            "6 output channels are not a multiple of N=4 in '4x1' (weight 6x1x4). "
            "Exclude the layer or pick N from 2, 3, 6.",
        ),
        (
            "1x4",
            view(4, 1, 7),
            "7 input channels are not a multiple of M=4 in '1x4' (weight 4x1x7). Exclude the layer or pick M from 7.",
        ),
        (
            "4xchannel",
            view(8, 9, 1, groups=4),
            "2 output channels in each of 4 groups are not a multiple of N=4 in '4xchannel' (weight 8x9x1). "
            "Exclude the layer or pick N from 2.",
        ),
        (
            "4x1",
            view(8, 9, 1, groups=8),
            "1 output channels in each of 8 groups are not a multiple of N=4 in '4x1' (weight 8x9x1). "
            "Exclude the layer or pick another pattern.",
        ),
    ],
)
def test_a_misfit_says_why_and_what_would_fit(spec: str, one: WeightView, reason: str) -> None:
    pattern = array_pattern(spec, {"fits": view(4, 1, 4), "odd": one}, exactly=False)
    assert pattern.invalid_layers == {"odd": reason}
    assert list(pattern.views) == list(pattern.units) == ["fits"]


def test_a_torn_unit_is_a_violation() -> None:
    pattern = array_pattern("4x1", {"fc": view(8, 1, 2), "conv": view(4, 9, 2)})
    masks = {"fc": np.ones((8, 1, 2), dtype=bool), "conv": np.ones((4, 9, 2), dtype=bool)}
    masks["fc"][:4, 0, 0] = False
    assert pattern.violations(masks) == {}
    masks["fc"][4:7, 0, 1] = False
    assert pattern.violations(masks) == {"fc": "3 weights are pruned in units that are not fully pruned"}
