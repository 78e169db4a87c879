"""What the tests of patterns share: the specifications that stand for all, and patterns on plain arrays."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from patterns import oracle
from secateur.frameworks import WeightView
from secateur.patterns import BasePattern, get_pattern

SPECS = (
    "1x1",
    "4x1",
    "1x4",
    "2x2",
    "16x1",
    "1xchannel",
    "channelx1",
    "4xchannel",
    "channelx4",
    "2:4",
    "1:4",
    "4:8",
    "2:4-transposable",
)
"""At least one specification of every registered pattern; a test holds that."""

DTYPES = ("float16", "bfloat16", "float32", "float64")


def view(outputs: int, positions: int, inputs: int, groups: int = 1, *, outputs_last: bool = False) -> WeightView:
    """A weight that is stored as patterns see it, or with output channels last, as Keras does."""
    if outputs_last:
        return WeightView(
            shape=(positions, inputs, outputs), output_axes=(2,), kernel_axes=(0,), input_axes=(1,), groups=groups
        )
    return WeightView(
        shape=(outputs, positions, inputs), output_axes=(0,), kernel_axes=(1,), input_axes=(2,), groups=groups
    )


def stored(views: Mapping[str, WeightView], arrays: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """(O, K, I) arrays as the views store them."""
    return None if arrays is None else {name: views[name].to_stored(array) for name, array in arrays.items()}


VIEWS = {"fc": view(32, 1, 16), "conv": view(16, 9, 8)}
"""Two layers that every one of `SPECS` fits."""


def array_pattern(
    spec: str, views: Mapping[str, WeightView] = VIEWS, *, exactly: bool = True, **config: Any
) -> BasePattern:
    """The pattern that serves `spec`, on arrays; unless not `exactly`, every view has to fit."""
    pattern = get_pattern({"pattern": spec, **config}, views, "array")
    assert not (exactly and pattern.invalid_layers), pattern.invalid_layers
    return pattern


def share_of(spec: str) -> Fraction:
    """The share of weights that go when all units are pruned."""
    if ":" not in spec:
        return Fraction(1)
    keep, group = oracle.parse_counts(spec)
    return Fraction(group - keep, group)


def random_scores(views: Mapping[str, WeightView] = VIEWS, seed: int = 0) -> dict[str, Any]:
    """Distinct scores, nearly surely."""
    rng = np.random.default_rng(seed)
    return {name: rng.random(one.shape, dtype=np.float32) for name, one in views.items()}
