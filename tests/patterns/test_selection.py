import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns import oracle
from patterns.cases import array_pattern, view
from secateur.errors import ScoreError
from secateur.patterns.selection import Scores, find_cuts, find_global_cuts, keep_above, to_sort_keys, unify_precision

SPECIAL = [-np.inf, -3.4e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0 + 2**-23, 3.4e38, np.inf]

# Few distinct values, so that most cuts fall among ties.
SCORE = st.sampled_from([*SPECIAL, 0.5, 2.0, 2.0 + 2**-22])
LAYER = st.lists(st.tuples(SCORE, st.booleans()), min_size=1, max_size=12)


def stream(scores: list[float], alive: list[bool] | None = None, *, chunk: int = 3, dtype: str = "float32") -> Scores:
    """Scores in chunks of a few units."""
    array = np.array(scores, dtype=dtype)

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, array.size, chunk):
            yield array[start : start + chunk]

    return Scores("fc", chunks, array.size, None if alive is None else np.array(alive))


def kept(layer: Scores, count: int) -> list[bool]:
    layers = unify_precision({"fc": layer})
    found: list[bool] = keep_above(layers["fc"], find_cuts(layers, {"fc": count})["fc"]).tolist()
    return found


@given(layer=LAYER, count=st.integers(0, 12), chunk=st.integers(1, 12), before=st.booleans())
def test_one_layer_as_the_oracle(layer: list[tuple[float, bool]], count: int, chunk: int, before: bool) -> None:
    scores = [score for score, _ in layer]
    alive = [living or not before for _, living in layer]
    count = min(count, len(scores))
    found = kept(stream(scores, alive if before else None, chunk=chunk), count)
    assert found == oracle.keep_best(scores, alive, count).tolist()


@given(
    layers=st.lists(st.tuples(LAYER, st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=4), data=st.data()
)
def test_one_ranking_within_bounds_as_the_oracle(
    layers: list[tuple[list[tuple[float, bool]], int, int]], data: st.DataObject
) -> None:
    scores = [[score for score, _ in layer] for layer, _, _ in layers]
    alive = [[living for _, living in layer] for layer, _, _ in layers]
    bounds = [(min(first, second, len(layer)), min(max(first, second), len(layer))) for layer, first, second in layers]
    total = data.draw(st.integers(0, sum(len(layer) for layer in scores)))
    names = [str(index) for index in range(len(layers))]
    streams = {name: stream(*pair) for name, *pair in zip(names, scores, alive, strict=True)}
    lower = {name: low for name, (low, _) in zip(names, bounds, strict=True)}
    upper = {name: high for name, (_, high) in zip(names, bounds, strict=True)}
    cuts = find_global_cuts(streams, total, lower, upper)
    counts = oracle.counts_to_prune(scores, alive, total, bounds)
    assert [cuts[name].pruned for name in names] == counts
    for index, name in enumerate(names):
        expected = oracle.keep_best(scores[index], alive[index], counts[index])
        assert keep_above(streams[name], cuts[name]).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_keys_sort_as_the_scores(dtype: type) -> None:
    scores = np.array(SPECIAL, dtype=dtype)
    keys = to_sort_keys(scores, None)
    np.testing.assert_array_equal(np.sign(np.diff(keys)), np.sign(np.diff(np.nan_to_num(scores.astype(np.float64)))))
    living = np.arange(scores.size) != 3
    assert to_sort_keys(scores, living)[3] < keys.min()


def test_float64_is_not_rounded_to_float32() -> None:
    scores = [1.0 + 2e-16, 1.0, 1.0 + 4e-16]
    assert kept(stream(scores, dtype="float64"), 1) == [True, False, True]
    assert kept(stream(scores, dtype="float32"), 1) == [True, True, False]


def test_one_layer_in_float64_widens_all() -> None:
    layers = unify_precision({"fc": stream([1.0]), "conv": stream([1.0], dtype="float64")})
    assert [layer.wide for layer in layers.values()] == [True, True]


def test_a_later_layer_loses_a_tie() -> None:
    layers = {name: stream([1.0, 1.0]) for name in ("first", "second", "third")}
    cuts = find_global_cuts(layers, 3, dict.fromkeys(layers, 0), dict.fromkeys(layers, 2))
    assert [cut.pruned for cut in cuts.values()] == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("other", [1.0, np.inf, -np.inf])
def test_nan_is_refused(dtype: str, sign: float, other: float) -> None:
    layer = stream([other, np.copysign(np.nan, sign), other], dtype=dtype)
    with pytest.raises(ScoreError, match="layer 'fc': scores must be numbers, found nan"):
        kept(layer, 1)


def test_nan_of_a_unit_pruned_before_is_ignored() -> None:
    assert kept(stream([1.0, np.nan, 2.0], [True, False, True]), 2) == [False, False, True]


def peak_memory(layers: int, spec: str) -> int:
    """Bytes allocated at the most while masks are selected."""
    views = {str(index): view(512, 1, 1024) for index in range(layers)}
    pattern = array_pattern(spec, views, target_sparsity=0.25)
    scores = {name: np.random.default_rng(int(name)).random((512, 1, 1024), dtype=np.float32) for name in views}
    tracemalloc.start()
    masks = pattern.masks(scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(masks) == layers
    return peak


@pytest.mark.parametrize("spec", ["1x1", "4x1", "2:4"])
def test_memory_beyond_the_masks_does_not_grow_with_the_weights(spec: str) -> None:
    weights = 4 * 512 * 1024
    assert peak_memory(8, spec) - peak_memory(4, spec) < 1.3 * weights
