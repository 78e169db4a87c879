"""Selection by several processes that each rank a part of the units, as threads."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import ScoreError
from secateur.frameworks import WeightView
from secateur.patterns import BasePattern, get_pattern
from secateur.patterns.parts import LayerPeers, are_shared, count_rows, take_part, take_view
from secateur.patterns.slices import CrossTiling, SliceTiling
from secateur.patterns.tiling import Units

Arrays = dict[str, np.ndarray[Any, Any]]


class Room:
    """Where threads exchange arrays."""

    def __init__(self, size: int) -> None:
        self.barrier = Barrier(size)
        self.values: list[Any] = [None] * size

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait(timeout=20)
        values = list(self.values)
        self.barrier.wait(timeout=20)
        return values


class ThreadPeers:
    def __init__(self, room: Room, rank: int, count: int) -> None:
        self.room, self.rank, self.count = room, rank, count

    def add(self, counts: Any) -> Any:
        return np.sum(self.room.gather(self.rank, counts), axis=0)

    def count_before(self, count: int) -> int:
        return sum(self.room.gather(self.rank, count)[: self.rank])


class ThreadRows:
    def __init__(self, room: Room, rank: int, starts: list[int]) -> None:
        self.room, self.rank, self.starts = room, rank, starts

    def exchange(self, arrays: Any) -> Any:
        return np.stack([sent[self.rank] for sent in self.room.gather(self.rank, arrays)])

    def gather(self, array: Any) -> list[Any]:
        return self.room.gather(self.rank, array)


def make_peers(pattern: BasePattern, layer: str, room: Room, rank: int, starts: list[int]) -> LayerPeers:
    weights = ThreadPeers(room, rank, math.prod(pattern.views[layer].shape))
    if are_shared(pattern, layer):
        return LayerPeers(weights=weights, rows=ThreadRows(room, rank, starts))
    return LayerPeers(weights=weights, units=ThreadPeers(room, rank, pattern.units[layer].count))


def make_pattern(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> BasePattern:
    views = {
        name: WeightView(shape=shape, output_axes=(0,), kernel_axes=tuple(range(2, len(shape))), input_axes=(1,))
        for name, shape in shapes.items()
    }
    return get_pattern(config, views, "array")


def run_parts(pattern: BasePattern, cuts: dict[str, list[int]], act: Callable[[BasePattern, Any], Any]) -> list[Any]:
    """Call `act` in a thread per part, with its pattern and a function that takes its rows of arrays."""
    size = len(next(iter(cuts.values()))) - 1
    room = Room(size)

    def work(rank: int) -> Any:
        rows = {layer: range(*ends[rank : rank + 2]) for layer, ends in cuts.items()}
        part = take_part(
            pattern,
            {layer: take_view(pattern.views[layer], own) for layer, own in rows.items()},
            {layer: make_peers(pattern, layer, room, rank, cuts[layer]) for layer in rows},
        )
        return act(part, lambda arrays: {layer: array[slice_of(rows[layer])] for layer, array in arrays.items()})

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


def slice_of(rows: range) -> slice:
    return slice(rows.start, rows.stop)


PATTERNS = ["1x1", "4x1", "1x2", "1xchannel", "2:4", "4x2"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("scope", ["global", "local"])
@settings(max_examples=12)
@given(data=st.data())
def test_parts_select_what_the_whole_selects(pattern: str, scope: str, data: Any) -> None:
    config = {"pattern": pattern, "pruning_scope": scope, "target_sparsity": 0.5}
    whole = make_pattern(config, {"a": (24, 4), "b": (12, 4, 3)})
    values = data.draw(st.sampled_from([2, 5, 1000]), label="different values")
    seed = data.draw(st.integers(0, 2**16), label="seed")
    generator = np.random.default_rng(seed)
    scores = {
        name: generator.integers(values, size=view.shape).astype(np.float32) for name, view in whole.views.items()
    }
    targets = (0.25, 0.25) if pattern == "2:4" else (0.3, 0.7)
    first = whole.masks(scores, targets[0])
    second = whole.masks(scores, targets[1], first)
    step = count_rows(whole, "a")
    assert step == count_rows(whole, "b")
    assert step is not None
    cuts = {
        name: sorted(
            step * index for index in [0, *generator.choice(range(1, rows // step), 2, replace=False), rows // step]
        )
        for name, rows in (("a", 24), ("b", 12))
        if rows // step > 2
    }

    def act(part: BasePattern, take: Callable[[Arrays], Arrays]) -> tuple[Arrays, Arrays]:
        own = take(scores)
        once = part.masks(own, targets[0])
        return once, part.masks(own, targets[1], once)

    for expected, found in zip((first, second), zip(*run_parts(whole, cuts, act), strict=True), strict=True):
        for layer, mask in expected.items():
            np.testing.assert_array_equal(np.concatenate([masks[layer] for masks in found]), mask)


def test_each_part_knows_the_counts_of_the_whole() -> None:
    whole = make_pattern({"pattern": "4x1", "target_sparsity": 0.5}, {"a": (24, 4)})

    def act(part: BasePattern, _: Any) -> tuple[int, int, int]:
        return part.units["a"].count, part.units["a"].total, part.count_pruned_units(0.5)

    assert run_parts(whole, {"a": [0, 4, 24]}, act) == [(4, 24, 12), (20, 24, 12)]


@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_a_score_that_is_no_number_raises_in_each_part(pattern: str) -> None:
    whole = make_pattern({"pattern": pattern, "target_sparsity": 0.25}, {"a": (24, 4)})
    scores = np.ones((24, 4), np.float32)
    scores[20, 1] = np.nan

    def act(part: BasePattern, take: Callable[[Arrays], Arrays]) -> str:
        with pytest.raises(ScoreError) as error:
            part.masks(take({"a": scores}))
        return str(error.value)

    messages = run_parts(whole, {"a": [0, 4, 24]}, act)
    assert [message.partition(":")[0] for message in messages] == ["layer 'a'"] * 2


def test_only_rows_of_whole_units_can_be_ranked_in_parts() -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (24, 4)}
    for pattern, rows in (("1x1", 1), ("4x1", 4), ("24x1", None), ("channelx1", None), ("1xchannel", 1)):
        assert count_rows(make_pattern({"pattern": pattern}, shapes), "a") == rows
    last = WeightView(shape=(4, 24), output_axes=(1,), input_axes=(0,))
    for pattern in ("1x1", "2:4"):
        assert count_rows(get_pattern({"pattern": pattern}, {"a": last}, "array"), "a") is None


def draw_cuts(generator: np.random.Generator, rows: int, parts: int) -> list[int]:
    return [0, *sorted(int(cut) for cut in generator.choice(range(1, rows), parts - 1, replace=False)), rows]


def compare_parts(whole: BasePattern, scores: Arrays, parts: int, generator: np.random.Generator) -> None:
    """Select, with rows divided anywhere, and compare the masks and the bits of the scores of units."""
    cuts = {name: draw_cuts(generator, view.shape[0], parts) for name, view in whole.views.items()}
    canonical = {name: whole.views[name].to_canonical(array) for name, array in scores.items()}
    expected = whole.masks(scores)

    def read_scores(pattern: BasePattern, arrays: Arrays) -> bytes:
        return b"".join(chunk.tobytes() for name in pattern.units for chunk in pattern.stream(name, arrays).chunks())

    def act(part: BasePattern, take: Callable[[Arrays], Arrays]) -> tuple[bytes, Arrays, dict[str, str]]:
        masks = part.masks(take(scores))
        return read_scores(part, take(canonical)), masks, part.violations(masks)

    found = run_parts(whole, cuts, act)
    for bits, _, wrong in found:
        assert bits == read_scores(whole, canonical)
        assert wrong == {}
    for layer, mask in expected.items():
        np.testing.assert_array_equal(np.concatenate([masks[layer] for _, masks, _ in found]), mask)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "l2"])
@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), parts=st.integers(2, 5), pattern=st.sampled_from(["channelx1", "channelx2"]))
def test_parts_score_units_of_all_rows_like_the_whole(reduction: str, seed: int, parts: int, pattern: str) -> None:
    generator = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"a": (int(generator.integers(5, 40)), 6), "b": (7, 4, 3)}
    config = {"pattern": pattern, "target_sparsity": 0.5, "criterion_reduce_type": reduction}
    whole = make_pattern(config, shapes)
    scores = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    compare_parts(whole, scores, parts, generator)


UNITS = {
    "in order": np.arange(12).reshape(4, 3),
    "with gaps": np.array([[1, 2, 3], [5, 6, 7], [9, 10, 11]]),
    "interleaved": np.arange(12).reshape(3, 4).T,
}


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("reduction", ["mean", "max"])
@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), parts=st.integers(2, 5))
def test_parts_score_coupled_units_like_the_whole(units: str, reduction: str, seed: int, parts: int) -> None:
    generator, indices = np.random.default_rng(seed), UNITS[units]
    whole = make_pattern(
        {"pattern": "1x1", "target_sparsity": 0.5, "criterion_reduce_type": reduction},
        {"up": (12, 5), "down": (7, 12), "both": (12, 12)},
    )
    outputs, inputs = SliceTiling((12, 1, 12), 0, indices), SliceTiling((12, 1, 12), 2, indices)
    tilings = {
        "up": SliceTiling((12, 1, 5), 0, indices),
        "down": SliceTiling((7, 1, 12), 2, indices),
        "both": CrossTiling(outputs, inputs),
    }
    whole.units = {"units": Units(tilings)}
    whole.budget = whole._make_budget()
    scores = {name: generator.standard_normal(view.shape).astype(np.float32) for name, view in whole.views.items()}
    compare_parts(whole, scores, parts, generator)


def test_a_weight_is_shared_if_its_units_can_be() -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (24, 4)}
    shared = [
        name
        for name in ("1x1", "4x1", "24x1", "channelx1", "1xchannel", "2:4")
        if are_shared(make_pattern({"pattern": name}, shapes), "a")
    ]
    assert shared == ["24x1", "channelx1"]
    last = WeightView(shape=(4, 24), output_axes=(1,), input_axes=(0,))
    assert not are_shared(get_pattern({"pattern": "channelx1"}, {"a": last}, "array"), "a")
