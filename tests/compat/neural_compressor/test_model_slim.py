"""Pruned channels and heads are removed under the name of Neural Compressor."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.compat.neural_compressor import WeightPruningConfig, prepare_compression
from secateur.compat.neural_compressor.compression.pruner import (
    model_slim,
    parse_auto_slim_config,
    prepare_pruning,
)
from secateur.compat.neural_compressor.compression.pruner.model_slim.auto_slim import model_slim_ffn2, model_slim_mha
from secateur.errors import CalibrationError, UnsupportedModelError
from tiny_transformers import family, inputs_of

ENDINGS = {"bert": "intermediate.dense", "opt": "fc1", "llama": "up_proj"}


def prune(name: str, **sparsity: float) -> Any:
    """Train and prune a model with the elements of `parse_auto_slim_config`."""
    model = family(name)
    elements = parse_auto_slim_config(model, **sparsity, pruning_scope="local")
    config = WeightPruningConfig(elements, start_step=1, end_step=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    manager = prepare_compression(model, config)
    manager.callbacks.on_train_begin()
    for step, batch in enumerate(inputs_of(name, 4)):
        manager.callbacks.on_step_begin(step)
        labels = torch.tensor([0, 1, 1]) if name == "bert" else batch["input_ids"]
        model(**batch, labels=labels).loss.backward()
        manager.callbacks.on_before_optimizer_step()
        optimizer.step()
        manager.callbacks.on_after_optimizer_step()
        optimizer.zero_grad()
    assert manager.callbacks.on_train_end().is_complete
    return manager


def call(model: nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs_of(name)[0]).logits


def perceptron(hidden: int, unused: list[int]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, hidden), nn.GELU(), nn.Linear(hidden, 4))
    with torch.no_grad():
        model[2].weight[:, unused] = 0
    return model


@pytest.mark.parametrize("name", ENDINGS)
def test_networks_and_heads_are_removed(name: str, tmp_path: Path) -> None:
    manager = prune(name, ffn2_sparsity=0.5, mha_sparsity=0.5)
    model = manager.model.model
    masked, before = call(model, name), sum(weight.numel() for weight in model.parameters())
    assert model_slim(manager.model, round_multiplier=8) is manager.model

    difference = float((call(model, name) - masked).abs().max())
    assert difference <= 1e-5
    widths = [module.out_features for key, module in model.named_modules() if key.endswith(ENDINGS[name])]
    assert widths == [16, 16, 16]
    # weights of half the channels and half the heads, and their biases
    removed = {
        "bert": 3 * (2 * 16 * 16 + 16 + 4 * 16 * 8 + 3 * 8),
        "opt": 3 * (2 * 16 * 16 + 16 + 4 * 16 * 8 + 3 * 8),
        "llama": 3 * (3 * 16 * 16 + 2 * 16 * 8 + 2 * 16 * 4),
    }[name]
    assert before - sum(weight.numel() for weight in model.parameters()) == removed

    secateur.save(model, tmp_path / "saved")
    assert torch.equal(call(secateur.load(tmp_path / "saved"), name), call(model, name))
    if name == "llama":  # other configurations cannot describe fewer heads of the same size
        assert model.config.num_key_value_heads == 1
        model.save_pretrained(tmp_path / "plain")
        assert torch.equal(call(type(model).from_pretrained(tmp_path / "plain"), name), call(model, name))
    manager.callbacks.on_after_optimizer_step()  # masks of the old shapes do no harm


def test_each_kind_alone() -> None:
    manager = prune("bert", ffn2_sparsity=0.5, mha_sparsity=0.25)
    model = manager.model.model
    masked = call(model, "bert")
    model_slim_ffn2(model, inputs_of("bert"), round_multiplier=16)
    layer = model.bert.encoder.layer[0]
    assert (layer.intermediate.dense.out_features, layer.attention.self.query.out_features) == (16, 16)
    model_slim_mha(model)
    assert layer.attention.self.query.out_features == 12
    torch.testing.assert_close(call(model, "bert"), masked, rtol=0, atol=1e-5)


def test_the_width_is_a_multiple_and_used_channels_stay() -> None:
    unused = [0, 1, 2, 5, 9, 11, 13, 17, 18, 23, 27, 28, 30]  # 19 of 32 are used, so 24 stay
    model = perceptron(32, unused)
    other = copy.deepcopy(model)
    inputs = torch.randn(3, 8)
    masked = model(inputs)
    used = model[0].weight[[index for index in range(32) if index not in unused]]
    model_slim(model, [inputs], round_multiplier=8)
    assert model[0].out_features == model[2].in_features == 24
    torch.testing.assert_close(model(inputs), masked, rtol=0, atol=1e-5)
    assert all((model[0].weight == row).all(dim=1).any() for row in used)

    random_state = torch.random.get_rng_state()
    torch.manual_seed(1)
    model_slim(other, [(inputs, torch.zeros(3))], round_multiplier=8)
    torch.random.set_rng_state(random_state)
    assert torch.equal(model[0].weight, other[0].weight)


@pytest.mark.parametrize(("multiple", "width"), [(0, 19), (1, 19), (5, 20), (32, 32), (64, 32)])
def test_the_multiple(multiple: int, width: int) -> None:
    model = perceptron(32, list(range(13)))
    model_slim_ffn2(model, [torch.randn(3, 8)], multiple)
    assert model[0].out_features == width


def test_a_model_that_stays_is_said_to(caplog: pytest.LogCaptureFixture) -> None:
    batches = [torch.randn(3, 8)]
    with caplog.at_level(logging.WARNING):
        model_slim(perceptron(32, [3]), batches)
    assert "model_slim removed nothing: '0' (the constraints of the group" in caplog.text
    caplog.clear()
    model_slim(perceptron(32, []), batches)
    assert "model_slim removed nothing: nothing is pruned." in caplog.text


def test_inputs_are_needed() -> None:
    model = perceptron(8, [1])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CalibrationError, match=r"dataloader must be given for a Sequential, whose inputs"):
        model_slim(model)
    with pytest.raises(CalibrationError, match=r"dataloader must have at least one batch"):
        model_slim(model, [])
    with pytest.raises(CalibrationError, match=r"does not run on the first batch of dataloader"):
        model_slim(model, [torch.randn(2, 5)])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_keras_models_are_refused() -> None:
    keras = pytest.importorskip("keras")
    with pytest.raises(UnsupportedModelError, match="model_slim needs a torch module"):
        model_slim(keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)]))


class Literal(nn.Module):
    """Its code contains the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(inputs).reshape(-1, 32).relu())


def test_what_cannot_be_removed_stays_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Literal()
    with torch.no_grad():
        model.down.weight[:, :16] = 0
    assert model_slim(model, [torch.randn(3, 8)], round_multiplier=8) is model
    assert model.up.weight.shape == (32, 8)
    assert any(message.startswith("model_slim removed nothing: 'up' (the code of") for message in caplog.messages)


def test_an_unfinished_run_ends() -> None:
    model = perceptron(64, [])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    element = {"op_names": ["2"], "pattern": "channelx1", "target_sparsity": 0.5}
    prepare_pruning(model, WeightPruningConfig([element], start_step=1, end_step=2), optimizer)
    for _ in range(3):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model_slim(model, [torch.randn(3, 8)])
    assert model[0].out_features == 32
