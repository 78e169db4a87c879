"""Test pattern classes that are written against the base classes of Intel Neural Compressor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.compat.neural_compressor import WeightPruningConfig
from secateur.compat.neural_compressor.compression.pruner import prepare_pruning
from secateur.compat.neural_compressor.compression.pruner.patterns import get_pattern
from secateur.compat.neural_compressor.compression.pruner.patterns.base import (
    PATTERNS,
    PytorchBasePattern,
    register_pattern,
)
from secateur.errors import ConfigError


@pytest.fixture(autouse=True)
def restore_registry(registries_restored: None) -> Iterator[None]:  # noqa: ARG001 - for its effect
    """Remove what a test registers."""
    before = dict(PATTERNS)
    yield
    PATTERNS.clear()
    PATTERNS.update(before)


class Paired(PytorchBasePattern):
    """Prunes the output channels i and i + O/2 together, ranked over all layers."""

    def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        ranked = []
        for name, score in scores.items():
            half = score.shape[0] // 2
            sums = score.flatten(1).mean(1)
            ranked += [((sums[i] + sums[i + half]).item(), name, i) for i in range(half)]
        masks = {name: torch.ones_like(mask) for name, mask in pre_masks.items()}
        for _, name, row in sorted(ranked)[: int(target_sparsity_ratio * len(ranked))]:
            masks[name][[row, row + scores[name].shape[0] // 2]] = 0
        return masks


def make_model() -> Any:
    torch.manual_seed(0)
    conv, linear = torch.nn.Conv2d(2, 8, 3), torch.nn.Linear(8, 8)
    with torch.no_grad():
        for weight in (conv.weight, linear.weight):
            scale = torch.arange(1.0, 9.0).reshape(-1, *[1] * (weight.dim() - 1))
            weight.copy_(scale.expand_as(weight))
        linear.weight.mul_(10)
    head = torch.nn.Linear(8, 2)
    return torch.nn.Sequential(conv, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear, head)


def find_zero_rows(layer: Any) -> list[int]:
    return [row for row, weight in enumerate(layer.weight) if not bool(weight.any())]


def train(model: torch.nn.Module, optimizer: Any, steps: int = 10) -> None:
    for _ in range(steps):
        model(torch.ones(2, 2, 5, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_class_runs_natively_and_its_artifact_is_verified(tmp_path: Path) -> None:
    register_pattern("ptPaired")(Paired)
    model = make_model()
    config = {"pattern": "ptPaired", "target_sparsity": 0.5, "criterion": "magnitude", "op_names": ["^[03]$"]}
    secateur.prune(model, config)
    # 8 pairs; the 4 with the lowest sums are those of the convolution
    assert find_zero_rows(model[0]) == list(range(8))
    assert find_zero_rows(model[3]) == []
    secateur.save(model, tmp_path / "model")
    secateur.verify(tmp_path / "model")  # raises if the zeros do not have the pattern


@pytest.mark.parametrize("pruning_type", ["magnitude", "magnitude_progressive", "snip_momentum"])
def test_class_in_place_of_blocks_runs_under_both_interfaces(pruning_type: str) -> None:
    register_pattern("ptNxM")(Paired)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = WeightPruningConfig(
        [{"pattern": "4x1", "pruning_type": pruning_type}],
        target_sparsity=0.5,
        start_step=1,
        end_step=9,
        pruning_frequency=4,
    )
    pruning = prepare_pruning(model, config, optimizer)
    train(model, optimizer)
    report = pruning.on_train_end()
    rows = find_zero_rows(model[0]), find_zero_rows(model[3])
    assert sum(map(len, rows)) == 8
    assert all(bool(row + 4 in layer) for layer in rows for row in layer if row < 4)
    assert report.sparsity == sum(model[i].weight.eq(0).sum().item() for i in (0, 3)) / (8 * 18 + 64)
    native = make_model()
    secateur.prune(native, {"pattern": "4x1", "target_sparsity": 0.5, "op_names": ["^[03]$"]})
    assert find_zero_rows(native[0])[:4] == [0, 1, 2, 3]


def test_pattern_lock_keeps_zeros() -> None:
    register_pattern("ptNxM")(Paired)
    model = make_model()
    with torch.no_grad():
        model[3].weight[:4] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    config = WeightPruningConfig([{"pattern": "4x1", "pruning_type": "pattern_lock"}], end_step=9)
    pruning = prepare_pruning(model, config, optimizer)
    train(model, optimizer)
    pruning.on_train_end()
    assert find_zero_rows(model[3]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: {"3": masks["3"]}, r"Wrong\.get_masks must return one mask for each"),
        (lambda masks: {name: mask[:1] for name, mask in masks.items()}, r"Wrong\.get_masks, layer '0': the mask must"),
        (
            lambda masks: {name: mask * 0.5 for name, mask in masks.items()},
            r"Wrong\.get_masks, layer '0': masks must be",
        ),
        (lambda masks: masks.missing, r"Wrong\.get_masks needs what does not exist: AttributeError .*missing"),
    ],
)
def test_mistakes_name_the_class_and_the_method(change: Any, message: str) -> None:
    @register_pattern("ptWrong")
    class Wrong(PytorchBasePattern):
        def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> Any:  # noqa: ARG002
            return change(pre_masks)

    with pytest.raises(ConfigError, match=message):
        secateur.prune(make_model(), {"pattern": "ptWrong", "target_sparsity": 0.5, "op_names": ["^[03]$"]})


def test_pruned_weights_must_stay_pruned() -> None:
    @register_pattern("ptWrong")
    class Wrong(PytorchBasePattern):
        def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> Any:  # noqa: ARG002
            masks = {name: ~mask for name, mask in pre_masks.items()}
            for mask in masks.values():
                mask[::2] = ~mask[::2]
            return masks

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = {"pattern": "ptWrong", "target_sparsity": 0.5, "criterion": "magnitude", "start_step": 1, "end_step": 3}
    secateur.prepare(model, config, optimizer)
    with pytest.raises(ConfigError, match=r"Wrong\.get_masks, layer '0': pruned weights must stay pruned"):
        train(model, optimizer)


@pytest.mark.parametrize(("name", "share"), [("4x1", 0.5), ("2:4", 0.5), ("1xchannel", 0.25)])
def test_default_methods_select_exactly(name: str, share: float) -> None:
    (element,) = WeightPruningConfig([{"pattern": name}], max_sparsity_ratio_per_op=0.9).complete_elements()
    layers = {"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 16)}
    pattern = get_pattern(element, layers)
    ones = {key: torch.ones_like(layer.weight, dtype=torch.bool) for key, layer in layers.items()}
    masks = pattern.get_masks({key: layer.weight.detach().abs() for key, layer in layers.items()}, share, ones)
    assert sum((~mask).sum().item() for mask in masks.values()) == share * 192
    assert pattern.get_sparsity_ratio_progressive(masks) == share
    assert pattern.update_residual_cnt(masks, share) == int(share * pattern.total_params_cnt)


def test_single_mask_and_reduction() -> None:
    (element,) = WeightPruningConfig([{"pattern": "4x1"}]).complete_elements()
    pattern = get_pattern(element, {"a": torch.nn.Linear(8, 8)})
    assert pattern.get_single_mask_per_target_ratio(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5).tolist() == [1, 0, 0, 1]
    assert pattern.reduce_tensor(torch.tensor([[1.0, 3.0]]), 1).tolist() == [2.0]
