import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns import oracle
from patterns.cases import array_pattern, share_of, stored, view
from secateur.errors import ConfigError
from secateur.patterns import NMPattern, WeightView
from secateur.patterns.nm import fill_nm_groups

VIEW = st.builds(
    lambda rows, positions, groups, last: view(rows, positions, 8 * groups, outputs_last=last),
    *[st.integers(1, 3)] * 3,
    st.booleans(),
)
SPEC = st.sampled_from(["2:4", "1:4", "3:4", "4:8", "1:2"])


def ones(**shapes: tuple[int, int, int]) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, dtype=bool) for name, shape in shapes.items()}


@given(spec=SPEC, layers=st.lists(VIEW, min_size=1, max_size=3), most=st.sampled_from([1, 5, 1000]), data=st.data())
def test_masks_are_those_of_the_oracle(spec: str, layers: list[WeightView], most: int, data: st.DataObject) -> None:
    views = {str(index): one for index, one in enumerate(layers)}
    pattern = array_pattern(spec, views)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    groups = sum(np.prod(one.shape) for one in layers) // int(spec[2])
    previous = None
    for part in sorted(data.draw(st.floats(0, 1)) for _ in range(2)):
        shapes = {name: one.canonical_shape for name, one in views.items()}
        scores = {name: rng.integers(-most, most + 1, shape).astype(np.float32) for name, shape in shapes.items()}
        sparsity = part * float(share_of(spec))
        masks = pattern.masks(stored(views, scores), sparsity, stored(views, previous))
        total = min(round(sparsity / float(share_of(spec)) * groups), groups)
        expected = oracle.group_masks(scores, spec, total, previous=previous)
        for name, mask in masks.items():
            np.testing.assert_array_equal(views[name].to_canonical(mask), expected[name])
        previous = {name: mask & (rng.random(mask.shape) < 0.9) for name, mask in expected.items()}


def test_it_counts_survivors() -> None:
    pattern = array_pattern("1:4", {"fc": view(1, 1, 8)})
    scores = {"fc": np.array([[[0.0, 3, 2, 1, 5, 5, 5, 5]]])}
    assert pattern.target_sparsity == 0.75
    assert pattern.masks(scores)["fc"].astype(int).tolist() == [[[0, 1, 0, 0, 1, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("reduction", "losses", "pruned"),
    [
        ("mean", ([0.0, 5.0], [3.0, 4.0]), 0),
        ("sum", ([0.0, 5.0], [3.0, 4.0]), 0),
        ("max", ([0.0, 5.0], [3.0, 4.0]), 1),
        ("max", ([-3.0, -2.0], [-9.0, -1.0]), 0),
        ("l2", ([0.0, 5.0], [3.0, 4.0]), 1),  # a tie
        ("l2", ([3.0, 4.0], [-6.0, 0.0]), 0),
    ],
)
def test_groups_are_ranked_by_the_reduced_scores_they_would_lose(
    reduction: str, losses: tuple[list[float], list[float]], pruned: int
) -> None:
    pattern = array_pattern("2:4", {"fc": view(1, 1, 8)}, target_sparsity=0.25, criterion_reduce_type=reduction)
    scores = np.array([[[9, *losses[0], 9, 9, *losses[1], 9]]], dtype=np.float32)
    mask = pattern.masks({"fc": scores})["fc"].reshape(2, 4)
    assert mask.sum(axis=1).tolist() == [2 if group == pruned else 4 for group in (0, 1)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "l2"])
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_the_pruned_cost_nothing_and_never_displace_the_living(reduction: str, sparsity: float) -> None:
    pattern = array_pattern("2:4", {"fc": view(1, 1, 8)}, target_sparsity=sparsity, criterion_reduce_type=reduction)
    previous = {"fc": np.array([[[0, 0, 1, 1, 0, 1, 1, 1]]], dtype=bool)}
    scores = {"fc": np.full((1, 1, 8), -np.inf, dtype=np.float32)}
    scores["fc"][..., 4:] = [9, 9, 9, 1]
    expected = {0.25: [0, 0, 1, 1, 0, 1, 1, 1], 0.5: [0, 0, 1, 1, 0, 1, 1, 0]}
    assert pattern.masks(scores, previous=previous)["fc"].ravel().astype(int).tolist() == expected[sparsity]


def test_the_bound_holds_where_more_than_the_target_is_asked() -> None:
    pattern = array_pattern("2:4", {"fc": view(10, 1, 4)}, target_sparsity=0.2, max_sparsity_ratio_per_op=0.3)
    mask = pattern.masks({"fc": np.ones((10, 1, 4))}, sparsity=0.5)["fc"]
    assert mask.size - mask.sum() == 12


def test_violations_of_a_complete_target() -> None:
    pattern = array_pattern("2:4", {"fc": view(2, 1, 8), "conv": view(2, 1, 8)})
    masks = ones(fc=(2, 1, 8), conv=(2, 1, 8))
    masks["conv"][..., ::2] = False
    masks["fc"][1, 0, :4] = False
    assert pattern.violations(masks) == {"fc": "3 of 4 groups of 4 weights keep more than 2"}
    assert pattern.violations(masks, sparsity=0.25) == {}, "on the way, groups may be dense"
    masks["fc"][..., 3:] = False
    masks["fc"][..., 0] = False
    assert pattern.violations(masks) == {}


@pytest.mark.parametrize("frozen", [True, False])
def test_violations_where_groups_may_be_dense(frozen: bool) -> None:
    pattern = array_pattern("2:4", {"fc": view(1, 1, 12)}, target_sparsity=0.5 if frozen else 0.25)
    if frozen:
        pattern.keep_mask_layers["fc"] = "on purpose"
    masks = ones(fc=(1, 1, 12))
    masks["fc"][..., :2] = False
    assert pattern.violations(masks) == {}
    masks["fc"][..., 4] = False
    assert pattern.violations(masks) == {"fc": "1 of 3 groups of 4 weights keep more than 2 but not all"}


@pytest.mark.parametrize(
    ("spec", "config", "message"),
    [
        (
            "4:4",
            {},
            r"pattern '4:4': N must be less than M, because N of every M weights are kept\. Use 2:4",
        ),
        ("4:2", {"target_sparsity": 0.5}, "'4:2': N must be less than M"),
        ("N:M", {}, r"pattern 'N:M' is a pattern type, not a specification\. Use 2:4"),
        (
            "2:4",
            {"target_sparsity": 0.6},
            r"target_sparsity=0.6 is out of reach for '2:4', which keeps 2 of every 4 weights and so prunes at most "
            r"0.5\. Lower the target or N\.",
        ),
    ],
)
def test_an_impossible_configuration_is_refused(spec: str, config: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        array_pattern(spec, **config)


def test_a_misfit_says_why_and_what_would_fit() -> None:
    pattern = array_pattern("2:4", {"fc": view(8, 1, 6)}, exactly=False)
    assert pattern.invalid_layers == {
        "fc": "6 input channels are not a multiple of M=4 in '2:4' (weight 8x1x6). "
        "Exclude the layer or pick M from 2, 3, 6."
    }


@pytest.mark.parametrize(
    ("spec", "serves"), [("2:4", True), ("13:23", True), ("0:4", False), ("2:4:8", False), ("N:M", False)]
)
def test_serves(spec: str, serves: bool) -> None:
    assert NMPattern.serves(spec) is serves


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)),
    keep=st.integers(0, 5),
    axis=st.sampled_from([0, 1, 2, -1]),
    data=st.data(),
)
def test_groups_are_filled_with_their_first_zeros(
    shape: tuple[int, int, int], keep: int, axis: int, data: st.DataObject
) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
    nonzero = np.array(flags).reshape(shape)
    filled = fill_nm_groups(nonzero, keep, axis=axis)
    for before, after in zip(
        np.moveaxis(nonzero, axis, -1).reshape(-1, shape[axis]),
        np.moveaxis(filled, axis, -1).reshape(-1, shape[axis]),
        strict=True,
    ):
        zeros = np.flatnonzero(~before)[: max(0, keep - int(before.sum()))]
        assert np.flatnonzero(after).tolist() == sorted([*np.flatnonzero(before), *zeros])
