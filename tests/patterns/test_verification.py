"""Masks and weights are checked against a pattern."""

import numpy as np
import pytest

from patterns.cases import SPECS, VIEWS, array_pattern, random_scores
from secateur.patterns.verification import verify_masks, verify_zeros


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("part", [0, 3, 7])
def test_masks_of_a_pattern_are_verified_by_count(spec: str, part: int) -> None:
    pattern, scores = array_pattern(spec), random_scores()
    counts = {name: units * part // 8 for name, units in pattern.budget.units.items()}
    masks = pattern.masks(scores, counts=counts)
    weights = {name: scores[name] * masks[name] for name in VIEWS}
    assert verify_masks(pattern, masks, weights, counts=counts) == {}
    pruned = {name: masks[name].size - int(masks[name].sum()) for name in VIEWS}
    assert pruned == {
        name: counts[name] * masks[name].size * pattern.unit_share / pattern.budget.units[name] for name in VIEWS
    }


def test_an_nm_mask_of_all_groups_may_leave_none_dense() -> None:
    pattern, weights = array_pattern("2:4"), random_scores()
    masks = {name: np.ones(view.shape, dtype=bool) for name, view in VIEWS.items()}
    masks["fc"][0, 0, :4] = False
    assert verify_masks(pattern, masks, weights, counts={"fc": 1, "conv": 0}) == {
        "fc": "4 pruned weights are not zero. Was the model changed after the last step, as by loading the best "
        "checkpoint? apply_masks sets them to zero."
    }
    wrong = verify_masks(pattern, masks, dict.fromkeys(VIEWS, np.zeros(1)) | weights, counts=pattern.budget.units)
    assert wrong["conv"] == "288 of 288 groups of 4 weights keep more than 2"


def test_nan_and_weights_without_a_mask() -> None:
    weights = {"one": np.array([1.0, np.nan]), "two": np.array([0.0, 1.0])}
    assert verify_zeros({}, weights) == {"one": "its weights contain nan"}
    assert verify_zeros({"one": np.array([True, False])}, weights)["one"].startswith("1 pruned weights are not zero")
