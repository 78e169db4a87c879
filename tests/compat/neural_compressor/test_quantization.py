"""Quantization-aware training under Neural Compressor's interface, with pruning."""

import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from secateur._packages import is_installed
from secateur.compat.neural_compressor.compression.callbacks import QuantizationAwareTrainingCallbacks
from secateur.compat.neural_compressor.config import QuantizationAwareTrainingConfig, WeightPruningConfig
from secateur.compat.neural_compressor.training import CompressionManager, prepare_compression
from secateur.errors import ConfigError, MissingPackageError, UnsupportedModelError

FLOAT = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}


def round_symmetrically(weight: torch.Tensor) -> torch.Tensor:
    """Round to int8 with one scale per output channel, and pass gradients through."""
    scale = weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / 127
    return weight + ((weight / scale).round() * scale - weight).detach()


class RoundedLinear(nn.Linear):
    """Stands for torchao's layer with simulated quantization."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, round_symmetrically(self.weight), self.bias)


class Recorded:
    """Stands for torchao's configurations."""

    def __init__(self, *args: Any, step: str = "quantize", **options: Any) -> None:
        self.args, self.step, self.options = args, step, options


def quantize(model: nn.Module, config: Recorded, filter_fn: Any) -> None:
    for name, module in list(model.named_modules()):
        if filter_fn(module, name):
            parent, _, leaf = name.rpartition(".")
            if config.step == "quantize":
                module.weight = nn.Parameter(round_symmetrically(module.weight).detach())
                continue
            replacement = (RoundedLinear if config.step == "prepare" else nn.Linear)(1, 1)
            replacement.weight, replacement.bias = module.weight, module.bias
            setattr(model.get_submodule(parent), leaf, replacement)


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, with the part of its interface that is used."""
    for name in ("torchao", "torchao.quantization", "torchao.quantization.qat"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    qat: Any = sys.modules["torchao.quantization.qat"]
    quantization: Any = sys.modules["torchao.quantization"]
    qat.QATConfig = qat.IntxFakeQuantizeConfig = quantization.Int8DynamicActivationInt8WeightConfig = Recorded
    quantization.quantize_ = quantize


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))


def train(manager: CompressionManager, model: nn.Module, steps: int = 10) -> list[type]:
    """Train, and return the classes of the layers in the last step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.callbacks.on_train_begin()
    for step in range(steps):
        manager.callbacks.on_step_begin(step)
        loss = model(torch.randn(8, 16)).square().mean()
        loss = manager.callbacks.on_after_compute_loss(None, None, loss)
        optimizer.zero_grad()
        loss.backward()
        manager.callbacks.on_before_optimizer_step()
        optimizer.step()
        manager.callbacks.on_after_optimizer_step()
        manager.callbacks.on_step_end()
    kinds = [type(module) for module in model.children()]
    assert manager.callbacks.on_train_end().sparsity == 0.75
    return kinds


def make_configs() -> list[Any]:
    pruning = WeightPruningConfig(
        [{"op_names": ["^0$", "^2$"], "pattern": "1x1"}], target_sparsity=0.75, start_step=1, end_step=8
    )
    return [pruning, QuantizationAwareTrainingConfig(op_name_dict={"3": FLOAT})]


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("order", [1, -1])
def test_zeros_survive_quantization(order: int) -> None:
    model = make_model()
    weights = [module.weight for module in (model[0], model[2])]
    manager = prepare_compression(model, make_configs()[::order])
    kinds = train(manager, model)
    assert kinds == [RoundedLinear, nn.ReLU, RoundedLinear, nn.Linear]
    assert [type(module) for module in model.children()] == [nn.Linear, nn.ReLU, nn.Linear, nn.Linear]
    assert sum(int((weight == 0).sum()) for weight in weights) == 768
    quantized = [module.weight for module in (model[0], model[2])]
    assert all(bool((new[old == 0] == 0).all()) for old, new in zip(weights, quantized, strict=True))
    assert repr(manager.callbacks.callbacks_list[-1]) == "Quantization Aware Training Callbacks"
    manager.callbacks.callbacks_list[-1].on_train_end()


@pytest.mark.skipif(not is_installed("torchao"), reason="torchao is not installed")
@pytest.mark.parametrize("order", [1, -1])
def test_zeros_survive_quantization_with_torchao(order: int) -> None:
    model = make_model()
    weights = [module.weight for module in (model[0], model[2])]
    kinds = train(prepare_compression(model, make_configs()[::order]), model)
    assert [kind.__name__ for kind in kinds] == ["FakeQuantizedLinear", "ReLU", "FakeQuantizedLinear", "Linear"]
    assert sum(int((weight == 0).sum()) for weight in weights) == 768
    quantized = [module.weight.dequantize() for module in (model[0], model[2])]
    assert all(bool((new[old == 0] == 0).all()) for old, new in zip(weights, quantized, strict=True))
    assert model(torch.randn(2, 16)).shape == (2, 4)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.compat.neural_compressor._quantization.pytorch.is_installed", lambda _name: False)
    with pytest.raises(MissingPackageError, match=r"'torchao', which is not installed\. Install it with: pip install"):
        prepare_compression(make_model(), make_configs())


@pytest.mark.usefixtures("torchao")
def test_a_quantized_linear_layer_is_needed() -> None:
    config = QuantizationAwareTrainingConfig(op_type_dict={"Linear": FLOAT})
    with pytest.raises(ConfigError, match="found none to quantize"):
        prepare_compression(make_model(), config)


def test_keras_models_are_refused() -> None:
    import keras

    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(UnsupportedModelError, match="found a Keras model"):
        QuantizationAwareTrainingCallbacks(QuantizationAwareTrainingConfig(), model)


def test_other_keys_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        QuantizationAwareTrainingConfig(device="cpu", quant_level=1)
    message = "QuantizationAwareTrainingConfig ignores device, quant_level, because torchao quantizes."
    assert caplog.messages == [message]
