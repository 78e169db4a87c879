"""The pattern of the zeros in a weight."""

from typing import Any

import numpy as np
import pytest

from secateur.patterns import WeightView, get_pattern
from secateur.patterns.recognition import NonzeroMask, find_matches, recognize_pattern, select_strictest

LINEAR = WeightView(shape=(512, 512), output_axes=(0,), input_axes=(1,))


def pruned_mask(pattern: str, view: WeightView, sparsity: float | None) -> Any:
    """The mask of a pattern for random scores."""
    rule = get_pattern({"pattern": pattern, "target_sparsity": sparsity}, {"layer": view}, "array")
    scores = np.random.default_rng(0).random(view.shape, dtype=np.float32)
    return rule.masks({"layer": scores})["layer"]


@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [
        ("2:4", None),
        ("4:8", None),
        ("4x1", 0.75),
        ("16x16", 0.75),
        ("1x1", 0.5),
        ("1xchannel", 0.5),
        ("channelx1", 0.5),
    ],
)
def test_a_pruned_weight_shows_its_pattern(pattern: str, sparsity: float | None) -> None:
    assert recognize_pattern(NonzeroMask(LINEAR, pruned_mask(pattern, LINEAR, sparsity))) == pattern


@pytest.mark.parametrize("zeros", [0, 8])
def test_a_nearly_dense_weight_shows_no_pattern(zeros: int) -> None:
    nonzero = np.ones(LINEAR.shape, bool)
    nonzero[7 * np.arange(zeros), 13 * np.arange(zeros)] = False
    assert recognize_pattern(NonzeroMask(LINEAR, nonzero)) is None


def test_a_weight_of_zeros_is_pruned_by_channels() -> None:
    assert recognize_pattern(NonzeroMask(LINEAR, np.zeros(LINEAR.shape, bool))) == "1xchannel"


def test_a_few_more_zeros_do_not_hide_the_pattern() -> None:
    for pattern, sparsity in (("2:4", None), ("4x1", 0.5)):
        nonzero = pruned_mask(pattern, LINEAR, sparsity)
        nonzero[0, :40] = False
        assert recognize_pattern(NonzeroMask(LINEAR, nonzero)) == pattern


def test_an_unusual_pattern_is_recognized_when_it_is_named() -> None:
    view = WeightView(shape=(26, 26), output_axes=(0,), input_axes=(1,))
    for pattern, sparsity in (("5:13", None), ("13x2", 0.5)):
        mask = NonzeroMask(view, pruned_mask(pattern, view, sparsity))
        assert recognize_pattern(mask) != pattern
        assert select_strictest(find_matches(mask, pattern), mask) == pattern


def test_groups_may_have_more_weights_than_a_byte_counts() -> None:
    view = WeightView(shape=(2, 512), output_axes=(0,), input_axes=(1,))
    nonzero = np.ones(view.shape, bool)
    nonzero[:, :2] = False
    assert NonzeroMask(view, nonzero).count_largest_group(512) == 510
