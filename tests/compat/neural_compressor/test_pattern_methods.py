"""The methods of the pattern classes that Intel Neural Compressor's patterns inherit, against plain computations."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

from secateur.compat.neural_compressor.compression.pruner.patterns import get_pattern
from secateur.compat.neural_compressor.compression.pruner.patterns.base import (
    KerasBasePattern,
    ProgressivePatternUtils,
    PytorchBasePattern,
    SparsityInfo,
)
from secateur.compat.neural_compressor.compression.pruner.patterns.ninm import PytorchPatternNInM
from secateur.compat.neural_compressor.compression.pruner.patterns.nxm import PytorchPatternNxM
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.errors import ConfigError, LayerError, ScoreError

UTILITIES = ProgressivePatternUtils


def element(pattern: str, **keys: Any) -> Any:
    (complete,) = WeightPruningConfig([{"pattern": pattern, **keys}]).complete_elements()
    return complete


def make(pattern: str, layers: dict[str, nn.Module], **keys: Any) -> Any:
    return get_pattern(element(pattern, **keys), layers)


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1


def ones(layers: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()}


def shares(masks: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: (mask == 0).double().mean().item() for name, mask in masks.items()}


CONV = {"conv": nn.Conv2d(6, 8, 3)}


def flatten_conv(weight: torch.Tensor) -> torch.Tensor:
    return weight.permute(0, 2, 3, 1).flatten(1)


@pytest.mark.parametrize("reduce_type", ["mean", "sum", "max"])
def test_scores_of_blocks(reduce_type: str) -> None:
    pattern, scores = make("4x2", CONV, criterion_reduce_type=reduce_type), random(8, 6, 3, 3)
    assert (pattern.N, pattern.M, pattern.block_size) == ("4", "2", {"conv": (4, 2)})
    blocks = flatten_conv(scores).reshape(2, 4, 27, 2)
    assert torch.equal(pattern.reshape_orig_to_pattern(scores, "conv"), blocks)
    reduced = pattern.reduce_score(scores, "conv")
    reduce = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[reduce_type]
    torch.testing.assert_close(reduced, reduce(blocks, dim=(1, 3)))
    expanded = pattern.reshape_reduced_to_orig(reduced, "conv", scores.shape)
    assert torch.equal(flatten_conv(expanded), reduced.repeat_interleave(4, 0).repeat_interleave(2, 1))
    assert pattern.reduce_scores({"conv": scores})["conv"].shape == (2, 27)


def test_layers_whose_mask_stays_are_not_reduced() -> None:
    pattern, scores = make("4x1", CONV), random(8, 6, 3, 3)
    pattern.keep_mask_layers["conv"] = True
    assert pattern.reduce_score(scores, "conv") is scores
    assert pattern.reduce_score(scores, "conv", force=True).shape == (2, 54)
    assert pattern.reduce_scores({"conv": scores}) == {}
    assert pattern.reshape_reduced_to_orig(scores, "conv", scores.shape) is scores


@pytest.mark.parametrize("scope", ["global", "local"])
def test_scores_of_units_select_like_those_of_weights(scope: str) -> None:
    layers = CONV | {"fc": nn.Linear(6, 12)}
    scores = {"conv": random(8, 6, 3, 3), "fc": random(12, 6)}
    pattern = make("4x1", layers, pruning_scope=scope)
    reduced = {name: pattern.reduce_score(score, name) for name, score in scores.items()}
    masks, same = (pattern.get_masks(each, 0.5, ones(layers)) for each in (scores, reduced))
    assert all(torch.equal(masks[name], same[name]) and masks[name].shape == scores[name].shape for name in layers)
    lowest = torch.cat([reduced[name].flatten() for name in layers]).sort().values[: 126 // 2]
    if scope == "global":
        kept = {name: (reduced[name] > lowest[-1]).repeat_interleave(4, 0) for name in layers}
        assert torch.equal(flatten_conv(masks["conv"]), kept["conv"])
        assert torch.equal(masks["fc"], kept["fc"])
    else:
        assert shares(masks) == {"conv": 0.5, "fc": 0.5}


def test_an_overridden_reduction_ranks() -> None:
    class Last(PytorchBasePattern):
        def reduce_score(self, score: Any, key: str, force: Any = False) -> Any:  # noqa: ARG002
            return -score

    layers = {"fc": nn.Linear(2, 2)}
    pattern = Last(element("1x1"), layers)
    masks = pattern.get_masks({"fc": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, 0.5, ones(layers))
    assert masks["fc"].tolist() == [[True, True], [False, False]]


def test_bounds_of_each_layer() -> None:
    layers = {"low": nn.Linear(10, 10), "high": nn.Linear(10, 10)}
    scores = {"low": random(10, 10), "high": random(10, 10) + 10}
    pattern = make("1x1", layers, target_sparsity=0.5, max_sparsity_ratio_per_op=0.7, min_sparsity_ratio_per_op=0.2)
    first = pattern.get_masks(scores, 0.25, ones(layers))
    assert shares(first) == {"low": 0.4, "high": 0.1}  # half of the minimum at half of the target
    last = pattern.get_masks(scores, 0.5, first)
    assert shares(last) == {"low": 0.7, "high": 0.3}
    assert pattern.keep_mask_layers == {"low": True}
    assert all(bool((first[name] | ~last[name]).all()) for name in layers)
    assert shares(make("1x1", layers, max_sparsity_ratio_per_op=0.7).get_masks(scores, 0.9, ones(layers))) == {
        "low": 0.7,
        "high": 0.7,
    }


def test_frozen_and_invalid_layers_keep_their_masks() -> None:
    layers = {"frozen": nn.Linear(8, 8), "odd": nn.Linear(8, 6), "free": nn.Linear(8, 8)}
    pattern = make("4x1", layers)
    assert pattern.invalid_layers == ["odd"]
    assert pattern.get_block_size_dict() == {"frozen": (4, 1), "free": (4, 1)}
    masks = ones(layers)
    masks["frozen"][:4] = False
    pattern.keep_mask_layers["frozen"] = True
    assert pattern.update_residual_cnt(masks, 0.75) == 24 - 8
    assert pattern.total_params_cnt == 32
    scores = {name: random(*mask.shape) for name, mask in masks.items()}
    found = pattern.get_masks(scores, 0.75, masks)
    assert shares(found) == {"frozen": 0.5, "odd": 0.0, "free": 0.98 // (1 / 16) / 16}
    assert pattern.get_sparsity_ratio(found, return_dict=True) == {
        "sparsity_ratio": 23 / 32,
        "zero_cnt": 23,
        "total_cnt": 32,
    }
    assert make("4x1", {"odd": nn.Linear(8, 6)}).get_masks({"odd": scores["odd"]}, 0.5, masks)["odd"].all()


def test_masks_with_one_number_per_unit() -> None:
    layers = {"fc": nn.Linear(4, 8), "conv": nn.Conv1d(4, 8, 1)}
    layers["fc"].weight.data[:4, 0] = 0
    pattern = make("4x1", layers, pruning_type="block_mask")
    masks = pattern.register_block_masks()
    assert masks.keys() == pattern.block_masks.keys() == {"fc"}
    assert masks["fc"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    selected = pattern.get_masks({"fc": torch.arange(8.0).reshape(2, 4)}, 0.5, masks)["fc"]
    assert selected.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert selected.dtype == torch.float32
    assert pattern.get_sparsity_ratio({"fc": selected}) == 0.5
    pattern.mask_block_weights({"fc": selected})
    assert not layers["fc"].weight[:4].any()
    assert layers["fc"].weight[4:].all()
    pattern.remove_block_masks()
    assert pattern.block_masks == {}


@pytest.mark.parametrize(
    ("proposed", "pruned", "expected"),
    [
        (SparsityInfo(30, 100, 0.3), 0, (False, 0.3)),  # no layer is above the target of 0.5
        (SparsityInfo(95, 100, 0.95), 0, (True, 0.8)),  # the other layer requires 20 of the 100 units
        (SparsityInfo(85, 100, 0.85), 10, (True, 0.8)),
        (SparsityInfo(75, 100, 0.75), 20, (False, 0.75)),
        (SparsityInfo(99, 100, 0.99), 5, (True, 0.8)),  # the maximum of 0.9, and then the minimum of the other
        (SparsityInfo(99, 100, 0.99), 30, (True, 0.7)),  # the other has too many already
    ],
)
def test_adjust_ratio(proposed: SparsityInfo, pruned: int, expected: tuple[bool, float]) -> None:
    layers = {"a": nn.Linear(10, 10), "b": nn.Linear(10, 10)}
    masks = ones(layers)
    masks["b"].view(-1)[:pruned] = False
    pattern = PytorchBasePattern(element("1x1"), layers)
    assert pattern.adjust_ratio(masks, "a", proposed, 0.9, 0.2, 0.5) == expected


def test_masks_per_threshold_and_errors() -> None:
    pattern = make("2x1", {"fc": nn.Linear(2, 4)})
    mask = pattern.get_mask_per_threshold(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2.0, (2, 1))
    assert mask.tolist() == [[False, False]] * 2 + [[True, True]] * 2
    with pytest.raises(LayerError, match=r"layer 'fc': scores must have the weight's shape \(4, 2\), or one number"):
        pattern.get_masks({"fc": random(3)}, 0.5, {"fc": torch.ones(4, 2)})
    with pytest.raises(ScoreError, match="found nan"):
        pattern.get_masks({"fc": torch.full((4, 2), torch.nan)}, 0.5, {"fc": torch.ones(4, 2)})
    with pytest.raises(LayerError, match="layer 'odd': 3 output channels"):
        make("2x1", {"odd": nn.Linear(2, 3)}).reshape_orig_to_pattern(random(3, 2), "odd")
    with pytest.raises(ConfigError, match="must have the form NxM"):
        PytorchPatternNxM(element("4:8"), {})
    with pytest.raises(ConfigError, match="must have the form N:M with N < M"):
        PytorchPatternNInM({**element("4:8"), "pattern": "8:4"}, {})


def test_groups_of_weights() -> None:
    layers = {"conv": nn.Conv2d(8, 4, 3), "odd": nn.Linear(6, 4)}
    pattern = make("1:4", layers)
    assert (pattern.N, pattern.M, pattern.invalid_layers) == (1, 4, ["odd"])
    scores = random(4, 8, 3, 3)
    groups = flatten_conv(scores).reshape(4, 18, 4)
    assert torch.equal(pattern.reshape_orig_to_pattern(scores, "conv"), groups)
    reduced, least = pattern.reduce_scores({"conv": scores, "odd": random(4, 6)})
    assert reduced.keys() == least.keys() == {"conv"}
    assert torch.equal(least["conv"].reshape(4, 18, 4), groups > groups.amin(-1, keepdim=True))
    torch.testing.assert_close(reduced["conv"], groups.amin(-1) / 4)
    masks = pattern.get_masks({"conv": scores}, 0.125, {"conv": torch.ones(4, 8, 3, 3)})
    assert shares(masks) == {"conv": 0.125}
    assert pattern.get_sparsity_ratio(masks) == 0.125
    assert pattern.get_reduced_masks_from_data(masks["conv"], "conv").shape == (4, 18)
    assert pattern.get_sparsity_ratio(masks, return_dict=True)["zero_cnt"] == 36
    layers["conv"].weight.data = scores * masks["conv"]
    assert torch.equal(pattern.get_pattern_lock_masks({"conv": layers["conv"]})["conv"], masks["conv"] != 0)
    assert pattern.get_least_ninm_mask_from_data(torch.zeros(1, 4)).tolist() == [[True, True, True, False]]


def test_heads() -> None:
    pattern = make("mha", {})
    scores = {"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([[0.5], [3.0]])}
    masks = pattern.get_masks(scores, 0.5, {"a": torch.ones(1, 2), "b": torch.tensor([[1.0, 0.0]])})
    assert {name: mask.tolist() for name, mask in masks.items()} == {"a": [[True, True]], "b": [[False, False]]}
    assert pattern.get_sparsity_ratio(masks) == 0.5
    local = make("tile_pattern_mha", {}, pruning_scope="local")
    assert shares(local.get_masks(scores, 0.5, {"a": torch.ones(1, 2), "b": torch.ones(1, 2)})) == {"a": 0.5, "b": 0.5}


def test_pattern_lock_masks_of_whole_units() -> None:
    layers = {"fc": nn.Linear(2, 4), "odd": nn.Linear(2, 3)}
    layers["fc"].weight.data = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    layers["odd"].weight.data.zero_()
    masks = make("2x1", layers).get_pattern_lock_masks(layers)
    assert masks["fc"].tolist() == [[False, True]] * 2 + [[True, True]] * 2
    assert masks["odd"].all()
    single = PytorchBasePattern(element("1x1"), layers).get_pattern_lock_masks(layers)
    assert torch.equal(single["fc"], layers["fc"].weight != 0)


def test_progressive_masks_by_score() -> None:
    before = {"a": torch.ones(4), "b": torch.tensor([1.0, 1.0, 0.0, 1.0])}
    after = {"a": torch.tensor([0.0, 0.0, 1.0, 1.0]), "b": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    scores = {"a": torch.tensor([5.0, -1.0, 0.0, 0.0]), "b": torch.tensor([3.0, 2.0, 0.0, 0.0])}
    added = UTILITIES.update_new_added_masks(before, after)
    assert {name: mask.tolist() for name, mask in added.items()} == {"a": [0, 0, 1, 1], "b": [0, 0, 1, 1]}
    assert UTILITIES.count_new_masked_cnts(added) == 4

    def select(step: int, *, use_global: bool) -> list[list[float]]:
        settings = {"progressive_steps": 4, "use_global": use_global}
        masks = UTILITIES.update_progressive_masks_scores_order(before, after, scores, step, settings)
        return [masks["a"].tolist(), masks["b"].tolist()]

    assert select(0, use_global=True) == [[1, 1, 1, 1], [1, 1, 0, 1]]
    assert select(2, use_global=True) == [[1, 0, 1, 1], [1, 0, 0, 1]]
    assert select(3, use_global=True) == [[1, 0, 1, 1], [0, 0, 0, 1]]
    assert select(4, use_global=True) == [after["a"].tolist(), after["b"].tolist()]
    assert select(2, use_global=False) == [[1, 0, 1, 1], [1, 0, 0, 1]]
    assert select(1, use_global=False) == [[1, 1, 1, 1], [1, 1, 0, 1]]


@pytest.mark.parametrize("name", ["4x2", "2x4"])
def test_progressive_masks_row_by_row(name: str) -> None:
    layers = {"conv": nn.Conv2d(4, 4, 2)}
    pattern = make(name, layers)
    before, after = ones(layers), {"conv": torch.zeros(4, 4, 2, 2, dtype=torch.bool)}
    settings = {"progressive_steps": 2, "progressive_type": "linear", "use_global": False}
    mask = pattern.update_progressive_masks(before, after, {}, 1, settings)["conv"]
    matrix = flatten_conv(mask)
    if name == "4x2":
        assert matrix.any(1).tolist() == [False, False, True, True]
    else:
        assert matrix.any(0).tolist() == [False, False, True, True] * 4
    assert torch.equal(pattern._reshape_2dims_to_orig(pattern._reshape_orig_to_2dims(mask), mask.shape), mask)
    with pytest.raises(ConfigError, match="must be a multiple of 3 parts"):
        pattern.update_progressive_masks(before, after, {}, 1, settings | {"progressive_steps": 3})
    with pytest.raises(ConfigError, match="progressive_type must be"):
        pattern.update_progressive_masks(before, after, {}, 1, settings | {"progressive_type": "random"})


def test_progressive_masks_with_scores_of_units() -> None:
    layers = {"fc": nn.Linear(2, 4)}
    pattern = make("2x1", layers)
    scores = {"fc": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    before = ones(layers)
    after = pattern.get_masks(scores, 0.5, before)
    settings = {"progressive_steps": 4, "progressive_type": "scores", "use_global": True}
    masks = [pattern.update_progressive_masks(before, after, scores, step, settings)["fc"] for step in range(5)]
    assert [int((~mask).sum()) for mask in masks] == [0, 1, 2, 3, 4]
    assert masks[2].tolist() == [[False, True]] * 2 + [[True, True]] * 2
    assert torch.equal(masks[4], after["fc"])


@pytest.mark.parametrize("make_layer", [partial(nn.Linear, 16, 8), partial(nn.Conv2d, 4, 8, 2)])
@pytest.mark.parametrize("name", ["1x1", "2:4"])
def test_fasterprune(make_layer: Any, name: str) -> None:
    torch.manual_seed(0)
    layer, inputs = make_layer(), torch.randn(64, 6) @ torch.randn(6, 16)  # what stays makes up for what goes
    dense = layer.weight.detach().clone()
    pattern = make(name, {"layer": layer}, target_sparsity=0.5)
    gram = inputs.T @ inputs
    pattern.fasterprune(SimpleNamespace(module=layer, H=gram.clone()))
    assert (layer.weight == 0).double().mean() == 0.5
    if name == "2:4":
        groups = layer.weight if layer.weight.dim() == 2 else flatten_conv(layer.weight)
        assert ((groups.reshape(-1, 4) == 0).sum(1) == 2).all()
    lost = ((layer.weight - dense).flatten(1) @ inputs.T).square().sum()
    blind = pattern.get_masks({"layer": dense.abs()}, 0.5, {"layer": torch.ones_like(dense)})["layer"]
    assert lost < 0.5 * ((dense * ~blind).flatten(1) @ inputs.T).square().sum()


def test_fasterprune_refuses_another_gram_matrix() -> None:
    layer = nn.Linear(16, 8)
    with pytest.raises(LayerError, match="H must be the Gram matrix of all 16 input features of Linear"):
        make("1x1", {"fc": layer}).fasterprune(SimpleNamespace(module=layer, H=torch.ones(8, 8)))
    with pytest.raises(LayerError, match="6 input channels are not a multiple of M=4"):
        make("2:4", {}).fasterprune(SimpleNamespace(module=nn.Linear(6, 8), H=torch.eye(6)))


def test_keras_layers() -> None:
    dense, conv = keras.layers.Dense(8, use_bias=False), keras.layers.Conv2D(8, 3)
    dense.build((None, 6))
    conv.build((None, 5, 5, 4))
    layers = {"dense": dense, "conv": conv}
    pattern = get_pattern(element("4x1"), layers, framework="keras")
    assert pattern.block_size == {"dense": (4, 1), "conv": (4, 1)}
    scores = {name: np.random.default_rng(0).random(layer.kernel.shape) for name, layer in layers.items()}
    assert pattern.reduce_score(scores["dense"], "dense").shape == (2, 6)
    masks = pattern.get_masks(scores, 0.5, {name: np.ones_like(score) for name, score in scores.items()})
    zeros = sum(int((mask == 0).sum()) for mask in masks.values())
    assert zeros == (48 + 288) / 2
    assert (masks["dense"].reshape(6, 2, 4).sum(2) % 4 == 0).all()  # kernels are stored with output channels last
    assert pattern.get_sparsity_ratio(masks) == 0.5
    block_masks = pattern.register_block_masks()
    assert block_masks.keys() == {"dense"}
    block_masks["dense"][0] = 0
    pattern.mask_block_weights(block_masks)
    assert not np.asarray(dense.kernel)[:, :4].any()
    assert not pattern.get_pattern_lock_masks(layers)["dense"][:, :4].any()
    single = KerasBasePattern(element("1x1"), layers)
    assert single.get_pattern_lock_masks(layers)["dense"].sum() == 24
