"""Whole attention heads under the names of Intel Neural Compressor."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import secateur
from secateur.compat.neural_compressor import WeightPruningConfig, prepare_compression, prepare_pruning
from secateur.compat.neural_compressor.compression.pruner.model_slim.auto_slim import model_slim, parse_auto_slim_config
from secateur.compat.neural_compressor.compression.pruner.model_slim.pattern_analyzer import SelfMHASearcher
from secateur.compat.neural_compressor.compression.pruner.patterns.base import PytorchBasePattern, register_pattern
from secateur.errors import CalibrationError, ConfigError
from tiny_transformers import family

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
    assert "prunes nothing: no attention layer with known heads was found" in caplog.text


def batches_of_tokens(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(1, 64, (2, 6), generator=generator)} for _ in range(count)]


def test_a_dataloader_shows_the_heads_of_fused_projections() -> None:
    model, batches = family("gpt2").train(), batches_of_tokens(6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    element = {"pattern": "mha", "pruning_type": "magnitude", "target_sparsity": 0.5, "pruning_scope": "local"}
    config = WeightPruningConfig([element], start_step=1, end_step=5)
    pruning = prepare_pruning(model, config, optimizer, dataloader=batches)
    for batch in batches:
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pruning.on_train_end().is_complete
    (pruner,) = pruning.pruners
    assert [name for name in pruner.modules if name.endswith("c_attn")] == [
        f"transformer.h.{i}.attn.c_attn" for i in range(3)
    ]
    masks = list(pruner.head_masks.values())
    assert [int((~mask).sum()) for mask in masks] == [2, 2, 2]
    for block, mask in zip(model.transformer.h, masks, strict=True):
        kept = mask[0].repeat_interleave(4)
        assert torch.equal((block.attn.c_attn.weight != 0).any(dim=0), kept.repeat(3))  # it stores (inputs, outputs)
        assert torch.equal((block.attn.c_proj.weight != 0).any(dim=1), kept)

    with torch.no_grad():
        masked = model.eval()(**batches[0]).logits
        model_slim(model)
        assert [block.attn.c_proj.nx for block in model.transformer.h] == [8, 8, 8]
        torch.testing.assert_close(model(**batches[0]).logits, masked, rtol=0, atol=1e-5)


def test_a_dataloader_gives_the_heads_that_names_give() -> None:
    batches = batches_of_tokens(3)
    for name in ("llama", "bert"):
        named, traced = (SelfMHASearcher(family(name), dataloader).search(False)[0] for dataloader in (None, batches))
        sort = [{key: sorted(names) for key, names in found.items()} for found in named]
        assert [{key: sorted(names) for key, names in found.items()} for found in traced] == sort
    assert SelfMHASearcher(family("gpt2")).search()[0] == []
    attention = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16)  # its heads can be zero, but not removed
    assert len(SelfMHASearcher(attention, [torch.randn(2, 3, 8)]).search(False)[0]) == 1
    with pytest.raises(CalibrationError, match="must accept the example inputs"):
        SelfMHASearcher(attention, [torch.randn(2, 3, 5)]).search()


@pytest.mark.parametrize("as_iterator", [False, True])
def test_heads_are_pruned_at_once(as_iterator: bool) -> None:
    model = family("opt")
    batches = [batch | {"labels": batch["input_ids"]} for batch in batches_of_tokens(4)]
    element = {"pattern": "mha", "pruning_type": "retrain_free", "target_sparsity": 0.25}
    prepare_pruning(model, WeightPruningConfig([element]), dataloader=iter(batches) if as_iterator else batches)
    outputs = [layer.self_attn.out_proj.weight for layer in model.model.decoder.layers]
    assert sum(int((weight == 0).all(dim=0).sum()) for weight in outputs) == 3 * 4


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
