"""Models with adapters, with the modules and names of PEFT."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import LayerError
from tiny_models import mlp

LOCK = {"kind": "pattern_lock"}


class Adapted(nn.Module):
    """A layer with LoRA as PEFT builds it: adapters by name, beside the base layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, base.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base_layer(inputs) + self.lora_B["default"](self.lora_A["default"](inputs))

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        self.base_layer.weight += self.lora_B["default"].weight @ self.lora_A["default"].weight
        return self.base_layer


class Scaled(nn.Module):
    """Another adapter, which declares its modules as all of PEFT do."""

    adapter_layer_names = ("ia3_l",)

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.ia3_l = nn.ParameterDict({"default": nn.Parameter(torch.ones(base.out_features, 1))})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base_layer(inputs) * self.ia3_l["default"].flatten()


def adapt(model: nn.Sequential, kind: Any = Adapted) -> nn.Sequential:
    """Freeze a model, and add adapters to its layers in place."""
    model.requires_grad_(requires_grad=False)
    for name in ("0", "2", "4"):
        setattr(model, name, kind(model.get_submodule(name)))
    return model


def fit(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    torch.manual_seed(0)
    inputs, targets, losses = torch.randn(64, 16), torch.randn(64, 4), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_plan_prunes_base_layers_and_never_adapters() -> None:
    model = adapt(mlp())
    before = copy.deepcopy(model.state_dict())
    report = secateur.prune(model, {"pattern": "2:4", "target_sparsity": 0.5})
    assert [layer.name for layer in report.layers] == ["0.base_layer", "2.base_layer"]
    assert report.dense["0.lora_A.default"] == "adapters are not pruned"
    assert report.dense["4.base_layer"].startswith("output layer")
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["0.base_layer.weight", "2.base_layer.weight"]


def test_prepare_of_adapters_alone_is_refused_and_names_them() -> None:
    model = adapt(mlp())
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 0.1)
    expected = r"0\.base_layer, .*: frozen \([\s\S]*  0\.lora_A\.default, .*: adapters are not pruned"
    with pytest.raises(LayerError, match=expected):
        secateur.prepare(model, {"pattern": "4x1", "target_sparsity": 0.5, "end_step": 9}, optimizer)
    with pytest.raises(
        LayerError, match=r"'0\.lora_B\.default' was named but cannot be pruned: adapters are not pruned"
    ):
        secateur.plan(model, {"pattern": "4x1", "op_names": ["0.lora_B.default"]})


def test_prepare_prunes_base_layers_that_train_beside_their_adapters() -> None:
    model = adapt(mlp()).requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = secateur.prepare(model, {"pattern": "4x1", "target_sparsity": 0.5, "end_step": 9}, optimizer)
    fit(model, optimizer)
    assert [layer.name for layer in pruner.finalize().layers] == ["0.base_layer", "2.base_layer"]


@pytest.mark.parametrize("kind", [Adapted, Scaled])
def test_a_lock_leaves_adapters_free_whatever_they_are(kind: Any) -> None:
    model = adapt(mlp(), kind).requires_grad_()
    rows = {layer.name: layer.reason for layer in secateur.plan(model, LOCK).layers}
    adapters = [name for name, reason in rows.items() if reason is not None]
    assert adapters == [name for name in rows if "base_layer" not in name]
    assert len(adapters) == (6 if kind is Adapted else 3)
    assert all("adapters are not pruned" in str(rows[name]) for name in adapters)


@pytest.mark.parametrize("prepares_first", [False, True])
def test_zeros_outlast_training_and_merging_of_adapters(prepares_first: bool) -> None:
    model = mlp()
    secateur.prune(model, {"pattern": "2:4"})
    masks = {name: model.get_submodule(name).weight != 0 for name in ("0", "2")}
    pruner = secateur.prepare(model, LOCK) if prepares_first else None
    adapt(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 0.01)
    zeros = pruner or secateur.prepare(model, LOCK, optimizer)
    losses = fit(model, optimizer)
    assert losses[-1] < 0.9 * losses[0]
    for name in ("0", "2", "4"):
        setattr(model, name, model.get_submodule(name).merge())
    assert bool((model[0].weight[~masks["0"]] != 0).any())
    zeros.apply_masks()
    assert all(not model.get_submodule(name).weight[~mask].any() for name, mask in masks.items())
    report = zeros.finalize()
    assert [(layer.pattern, layer.sparsity) for layer in report.layers[:2]] == [("2:4", 0.5)] * 2
    assert all(layer.sparsity == 0 for layer in report.layers[2:])
    assert report.step == (0 if prepares_first else 20)
