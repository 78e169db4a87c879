"""Whole attention heads under the names of Intel Neural Compressor."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import secateur
from secateur.compat.neural_compressor import WeightPruningConfig, prepare_compression, prepare_pruning
from secateur.compat.neural_compressor.compression.pruner.model_slim.auto_slim import parse_auto_slim_config
from secateur.compat.neural_compressor.compression.pruner.patterns.base import PytorchBasePattern, register_pattern
from secateur.errors import ConfigError

SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)).eval()


def train(model: nn.Module, config: WeightPruningConfig) -> list:
    callbacks = prepare_compression(model, config).callbacks
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    callbacks.on_train_begin()
    for step in range(8):
        callbacks.on_step_begin(step)
        tokens = torch.randint(32, (2, 6))
        model(tokens, labels=torch.tensor([0, 1])).loss.backward()
        callbacks.on_before_optimizer_step()
        optimizer.step()
        callbacks.on_after_optimizer_step()
        optimizer.zero_grad()
        callbacks.on_step_end()
    assert callbacks.on_train_end().is_complete
    return callbacks.callbacks_list[0].pruners


@pytest.mark.parametrize("pattern", ["mha", "tile_pattern_mha"])
@pytest.mark.parametrize("pruning_type", ["snip_momentum", "magnitude", "block_mask"])
def test_heads_are_pruned_whatever_op_names_says(pattern: str, pruning_type: str) -> None:
    model = bert()
    element = {"pattern": pattern, "pruning_type": pruning_type, "op_names": ["intermediate"], "target_sparsity": 0.5}
    (pruner,) = train(model, WeightPruningConfig([element], start_step=1, end_step=6, pruning_frequency=2))
    masks = pruner.head_masks
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        f"bert.encoder.layer.{block}.attention": (1, 4) for block in range(2)
    }
    assert sum(int((~mask).sum()) for mask in masks.values()) == 4
    for name, mask in masks.items():
        attention = model.get_submodule(name)
        rows = mask[0].repeat_interleave(4)
        layers = attention.self.query, attention.self.key, attention.self.value
        assert all(torch.equal((layer.weight != 0).any(dim=1), rows) for layer in layers)
        assert torch.equal((attention.output.dense.weight != 0).any(dim=0), rows)
    assert not (model.bert.encoder.layer[0].intermediate.dense.weight == 0).any()


def test_feed_forward_networks_and_heads_together() -> None:
    model = bert()
    elements = parse_auto_slim_config(
        model,
        [{"input_ids": torch.ones(1, 4, dtype=torch.long)}],
        ffn2_sparsity=0.5,
        mha_sparsity=0.25,
        start_step=1,
        end_step=6,
    )
    channels, heads = train(model, WeightPruningConfig(elements))
    assert channels.head_masks == {}
    assert sum(int((~mask).sum()) for mask in heads.head_masks.values()) == 2


def test_models_without_attention_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters())
    pruning = prepare_pruning(model, WeightPruningConfig([{"pattern": "mha"}], end_step=4), optimizer)
    pruning.on_train_begin()
    assert pruning.pruners[0].head_masks == {}
    assert "prunes nothing: the model has no attention whose heads are known" in caplog.text


@pytest.mark.usefixtures("registries_restored")
@pytest.mark.parametrize("interface", ["compat", "native"])
def test_a_class_of_the_user_selects_heads(interface: str) -> None:
    shapes = []

    @register_pattern("ptMHA")
    class FirstHeads(PytorchBasePattern):
        def __init__(self, config: Any, modules: Any = None) -> None:
            super().__init__(config, modules)

        def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> Any:
            for name, mask in pre_masks.items():
                shapes.append((tuple(scores[name].shape), tuple(mask.shape)))
                mask[:, : int(target_sparsity_ratio * mask.numel())] = False
            return pre_masks

    model = bert()
    if interface == "compat":
        element = {"pattern": "mha", "pruning_type": "snip_momentum", "target_sparsity": 0.5}
        (pruner,) = train(model, WeightPruningConfig([element], start_step=1, end_step=6, pruning_frequency=2))
        assert all(mask.tolist() == [[False, False, True, True]] for mask in pruner.head_masks.values())
    else:
        names = ["query", "key", "value", "attention.output.dense"]
        config = {"pattern": "ptMHA(mha)", "target_sparsity": 0.5, "op_names": [f".*{name}" for name in names]}
        assert secateur.prune(model, config).sparsity == 0.5
    assert {*shapes} == {((4, 1), (1, 4))}
    for layer in model.bert.encoder.layer:
        assert not layer.attention.self.query.weight[:8].any()
        assert not layer.attention.output.dense.weight[:, :8].any()
        assert layer.attention.self.query.weight[8:].all()


@pytest.mark.usefixtures("registries_restored")
def test_masks_of_heads_are_checked() -> None:
    @register_pattern("ptMHA")
    class Wrong(PytorchBasePattern):
        def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> Any:  # noqa: ARG002
            return {name: mask[:, :2] for name, mask in pre_masks.items()}

    element = {"pattern": "mha", "pruning_type": "magnitude", "target_sparsity": 0.5}
    with pytest.raises(
        ConfigError, match=r"Wrong.get_masks, 'bert.encoder.*': the mask must have one boolean for each"
    ):
        train(bert(), WeightPruningConfig([element], start_step=1, end_step=6))
